"""The dense layers that an adapter can be on: torch modules of both formats, and their kernels in the native tree.

The names are those of the one table, `conversion.names`.
"""

from __future__ import annotations

import dataclasses

from janus_jax.config import JanusConfig
from janus_jax.interop.conversion.convert import expected_shapes
from janus_jax.interop.conversion.names import LINEAR, TABLES, NameTable, Slot

_KERNEL = "/kernel"
# Whoever adapts a part of the official model alone gets names that begin there: of `language_model`, a
# LlamaForCausalLM, and of `language_model.model`. Of parts of transformers' model the table knows them itself.
_PARTS = ("", "language_model.", "language_model.model.")
# What PEFT puts before the names of the model that it wraps.
_WRAPPED = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Module:
    """A torch module with a weight.

    Attributes:
      path: of the native layer, such as "decoder/layers_3/attn/q_proj".
      slot: which part of its kernel the module is, and in which layout.
      dense: whether it is a linear layer; an adapter on another one is of another kind.
    """

    path: str
    slot: Slot
    dense: bool


def unwrapped(name: str) -> str:
    """The name of a module without what PEFT puts before it, or before the part that it has wrapped."""
    return name.replace(_WRAPPED, "", 1)


def find_module(name: str) -> Module | None:
    """The module of that name in either format; None if there is no such one."""
    for prefix in _PARTS:
        for table in TABLES.values():
            slot = table.to_native(f"{prefix}{name}.weight")
            if slot is not None:
                dense = slot.layout is LINEAR and slot.name.endswith(_KERNEL)
                return Module(slot.name.rpartition("/")[0], slot, dense)
    return None


def is_unused(name: str) -> bool:
    """Whether it is a part of the official model that nothing uses."""
    return any(table.is_dropped(f"{name}.weight") for table in TABLES.values())


def torch_modules(path: str, table: NameTable) -> list[tuple[str, Slot]]:
    """(name, slot) of the torch modules that make up a native dense layer; [] for what is none."""
    slots = table.to_torch(path + _KERNEL)
    return [(s.name.removesuffix(".weight"), s) for s in slots if s.layout is LINEAR]


def dense_names(config: JanusConfig) -> list[str]:
    """The names of all dense layers, in both formats."""
    paths = [p.removesuffix(_KERNEL) for p in expected_shapes(config) if p.endswith(_KERNEL)]
    return [name for table in TABLES.values() for p in paths for name, _ in torch_modules(p, table)]


def kernel_shape(path: str, config: JanusConfig) -> tuple[int, int] | None:
    """(inputs, outputs) of a native dense layer; None if the model has no such layer."""
    shape = expected_shapes(config).get(path + _KERNEL, ())
    return shape if len(shape) == 2 else None
