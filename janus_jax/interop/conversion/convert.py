"""PyTorch state dicts to and from the native parameter tree, in memory or one array at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.interop.conversion.names import OFFICIAL, NameTable, Slot
from janus_jax.models import JanusModel, init_params, stack_layers, unstack_layers

_SHOWN = 8  # names listed for each kind of problem; the rest is counted

Read = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which torch tensors make up which of the native arrays.

    Attributes:
      shapes: native (unrolled) path -> shape, for every array of the model.
      sources: native path -> (torch name, its slot) of each part, in order; incomplete if there are problems.
      problems: kind of problem -> what is affected, e.g. {"missing": [torch names]}; empty if all fits.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sources: dict[str, list[tuple[str, Slot]]]
    problems: dict[str, list[str]]

    def load(self, path: str, read: Read) -> np.ndarray:
        """One native array, from the torch tensors that `read` gives by name."""
        parts = [slot.layout.to_native(read(name)) for name, slot in self.sources[path]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def make_plan(
    found: Mapping[str, tuple[int, ...]], config: JanusConfig, table: NameTable = OFFICIAL
) -> Plan:
    """Matches a checkpoint's tensors with the model's arrays, by name and shape; reads no values.

    Args:
      found: torch name -> shape.
      config: the architecture.
      table: the names' format.
    """
    shapes = expected_shapes(config)
    taken: dict[tuple[str, int], str] = {}
    problems: dict[str, list[str]] = {}
    sources: dict[str, list[tuple[str, Slot]]] = {}
    problem = lambda kind, text: problems.setdefault(kind, []).append(text)
    for name, shape in found.items():
        if table.is_dropped(name):
            continue
        slot = table.to_native(name)
        if slot is None or slot.name not in shapes:
            problem("unexpected", name)
            continue
        want = slot.torch_shape(shapes[slot.name])
        other = taken.setdefault((slot.name, slot.part[0]), name)
        if other != name:
            problem("duplicated", f"{name} (the same as {other})")
        elif tuple(shape) != want:
            problem("mis-shaped", f"{name} is {list(shape)} but should be {list(want)}")
        else:
            sources.setdefault(slot.name, []).append((name, slot))
    for path in shapes:
        for slot in table.to_torch(path):
            if (path, slot.part[0]) not in taken:
                problem("missing", slot.name)
    for parts in sources.values():
        parts.sort(key=lambda source: source[1].part)
    return Plan(shapes, sources, problems)


def check(problems: Mapping[str, list[str]], config: JanusConfig) -> None:
    """Raises one UserError that names all problems, if there are any."""
    if problems:
        kinds = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items()]
        raise UserError(
            f"the checkpoint does not fit {config.name} ({'; '.join(kinds)}); "
            "check that the config.json belongs to these weights, and that they are complete"
        )


def params_from_torch(
    state: Mapping[str, np.ndarray],
    config: JanusConfig,
    dtype: Any = None,
    table: NameTable = OFFICIAL,
) -> dict[str, Any]:
    """Converts a whole checkpoint in memory.

    Args:
      state: torch tensor name -> numpy array (bfloat16 as `ml_dtypes.bfloat16`).
      config: the architecture; `scan_layers` decides the layout of the result.
      dtype: dtype of the result; None keeps what the checkpoint has.
      table: the names' format.

    Returns:
      Parameters as nested dicts of numpy arrays, complete for `models.JanusModel(config)`.

    Raises:
      UserError: tensors are missing, unexpected, doubled or of the wrong shape; one message names them.
    """
    plan = make_plan({name: np.shape(value) for name, value in state.items()}, config, table)
    check(plan.problems, config)
    cast = lambda value: value if dtype is None else value.astype(dtype)
    read = lambda name: np.asarray(state[name])
    params = nest({path: cast(plan.load(path, read)) for path in plan.shapes})
    return stack_layers(params, config) if config.scan_layers else params


def params_to_torch(
    params: Mapping[str, Any], config: JanusConfig, table: NameTable = OFFICIAL
) -> dict[str, np.ndarray]:
    """The inverse of `params_from_torch`, without the tensors that nothing uses.

    Takes either layout of the layers.

    Raises:
      UserError: a parameter has no name in that format.
    """
    state = {}
    for path, value in flatten(unstack_layers(params, config)).items():
        state |= to_torch(path, np.asarray(value), table)
    return state


def to_torch(path: str, value: np.ndarray, table: NameTable = OFFICIAL) -> dict[str, np.ndarray]:
    """One native (unrolled) array as torch tensors by name.

    Raises:
      UserError: the parameter has no name in that format.
    """
    entries = table.to_torch(path)
    if not entries:
        raise UserError(f"parameter {path} has no name in the {table.key} format")
    return {s.name: np.ascontiguousarray(s.layout.to_torch(s.cut(value))) for s in entries}


@functools.cache
def expected_shapes(config: JanusConfig) -> Mapping[str, tuple[int, ...]]:
    """Native unrolled path -> shape, for every parameter of the model."""
    scanned = config.replace(scan_layers=True)

    def init(key):  # traced scanned, then unstacked: the depth does not matter
        return unstack_layers(init_params(JanusModel(scanned), key), scanned)

    tree = jax.eval_shape(init, jax.random.key(0))
    return MappingProxyType({path: leaf.shape for path, leaf in flatten(tree).items()})


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested dicts by path, such as "decoder/final_norm/scale", in their order."""
    return traverse_util.flatten_dict(tree, sep="/")


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
