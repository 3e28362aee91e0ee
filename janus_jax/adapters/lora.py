"""Adapters as leaves beside the kernels of a parameter tree: added, merged into the kernels, and taken out.

LoRA (Hu et al., arXiv 2106.09685): a kernel W [I, O] that stays as it is, and beside it `lora_a` [I, r],
`lora_b` [r, O] and `lora_scale`, a number; the layer computes with W + lora_scale * a @ b (`models.layers.Dense`).
Scanned layers have all three with a leading layer axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.adapters.int8 import dequantize
from janus_jax.errors import UserError, nearest
from janus_jax.models import Params
from janus_jax.models.layers import LORA_A, LORA_B, LORA_SCALE
from janus_jax.param_groups import find_nodes, merge_params, split_params

# The seven projections of every layer of the language model, in either layout of layers.
TARGETS = ("decoder/*/attn/*_proj", "decoder/*/mlp/*_proj")
# What an adapter trains, as patterns of parameter paths.
_SHOWN = 8  # paths in a message
LORA_PARAMS = (f"**/{LORA_A}", f"**/{LORA_B}")
_LEAVES = (LORA_A, LORA_B, LORA_SCALE)


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    """An adapter: `Stage.options["lora"]`.

    Attributes:
      rank: r.
      alpha: the product of the factors is times alpha / rank.
      targets: patterns of paths of dense layers (`param_groups`), such as "decoder/*/attn/q_proj".
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise UserError(f"lora.rank must be a whole number above 0, not {self.rank!r}")
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha must be a finite number above 0, not {self.alpha!r}")
        if not self.targets or not all(isinstance(t, str) and t for t in self.targets):
            raise UserError("lora.targets must be patterns of paths, at least one")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> LoraOptions | None:
        """Of the options of a stage; None where it has no adapter.

        Raises:
          UserError: an unknown name or an impossible value.
        """
        if "lora" not in options:
            return None
        values = dict(options["lora"])
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"lora has no field {name!r}.{nearest(name, known)}")
        if "targets" in values:
            targets = values["targets"]
            values["targets"] = (targets,) if isinstance(targets, str) else tuple(targets)
        return cls(**values)


def lora_shapes(params: Params, options: LoraOptions) -> Params:
    """The leaves of an adapter for a tree of arrays or shapes, as `ShapeDtypeStruct`s in float32.

    Raises:
      UserError: a pattern matches no dense layer; the message names the nearest path.
    """
    return _adapter(params, options, lambda name, shape: jax.ShapeDtypeStruct(shape, jnp.float32))


def add_lora(params: Params, options: LoraOptions, key: jax.Array) -> Params:
    """Parameters with an adapter that changes nothing yet: a is random (as PEFT's), b is zero.

    Raises:
      UserError: see `lora_shapes`; or there is an adapter.
    """
    if has_lora(params):
        raise UserError("the parameters have an adapter: merge it first")

    def value(name: str, shape: tuple[int, ...]) -> jax.Array:
        nonlocal key
        if name == LORA_B:
            return jnp.zeros(shape, jnp.float32)
        if name == LORA_SCALE:
            return jnp.full(shape, options.alpha / options.rank, jnp.float32)
        key, here = jax.random.split(key)
        limit = shape[-2] ** -0.5  # kaiming_uniform_(a=sqrt(5)) of [r, I] in PyTorch
        return jax.random.uniform(here, shape, jnp.float32, -limit, limit)

    return merge_params(params, _adapter(params, options, value))


def has_lora(params: Params) -> bool:
    """Whether a tree has an adapter."""
    return any(
        has_lora(value) if isinstance(value, dict) else key == LORA_A
        for key, value in params.items()
    )


def split_lora(params: Params) -> tuple[Params, Params]:
    """(the leaves of the adapter, all others); the first is {} where there is none."""
    if not has_lora(params):
        return {}, params
    return split_params(params, tuple(f"**/{name}" for name in _LEAVES))


def merge_lora(params: Params) -> Params:
    """Parameters whose kernels have taken the adapter in: summed in float32, in the dtype of the kernel.

    Works on jax and numpy arrays. Lazy kernels (with a method `load`) stay lazy, and of stacked ones a layer can
    be had alone; the adapter beside them may be lazy or not.
    """
    merged: dict[str, Any] = {}
    for key, value in params.items():
        if key in _LEAVES:
            continue
        merged[key] = merge_lora(value) if isinstance(value, dict) else value
    if LORA_A in params:
        merged["kernel"] = _sum(*(params[name] for name in ("kernel", *_LEAVES)))
    return merged


def plain(params: Params) -> Params:
    """The parameters of the network alone: kernels in floats, with the adapter in them. Works on shapes, too."""
    return merge_lora(dequantize(params))


def _sum(kernel: Any, a: Any, b: Any, scale: Any) -> Any:
    if hasattr(kernel, "load"):
        whole = lambda: _sum(*map(_loaded, (kernel, a, b, scale)))
        layer = lambda i: _sum(*(_loaded(x[i]) for x in (kernel, a, b, scale)))
        stacked = len(kernel.shape) == 3
        return dataclasses.replace(kernel, load=whole, load_part=layer if stacked else None)
    if not hasattr(kernel, "astype"):
        return kernel
    module = np if isinstance(kernel, np.ndarray) else jnp
    a, b, scale = (module.asarray(x, module.float32) for x in (a, b, scale))
    change = scale[..., None, None] * (a @ b)
    return (kernel.astype(module.float32) + change).astype(kernel.dtype)


def _loaded(array: Any) -> Any:
    return array.load() if hasattr(array, "load") else array


def _adapter(params: Params, options: LoraOptions, make: Any) -> Params:
    """The tree of an adapter whose leaves are `make(name, shape)`, always asked for in the same order."""
    adapter: Params = {}
    for path in sorted(_targets(params, options.targets)):
        node = params
        for part in path:
            node = node[part]
        *stacked, inputs, outputs = node["kernel"].shape
        place = adapter
        for part in path:
            place = place.setdefault(part, {})
        place[LORA_A] = make(LORA_A, (*stacked, inputs, options.rank))
        place[LORA_B] = make(LORA_B, (*stacked, options.rank, outputs))
        place[LORA_SCALE] = make(LORA_SCALE, tuple(stacked))
    return adapter


def _targets(params: Params, patterns: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Paths of the dense layers that the patterns name."""
    dense = {path: value for path, value in find_nodes(params, ("**",)) if _is_dense(value)}
    chosen = set()
    for pattern in patterns:
        found = {path for path, _ in find_nodes(params, (pattern,)) if path in dense}
        if not found:
            paths = sorted("/".join(path) for path in dense)
            raise UserError(
                f"lora.targets: {pattern!r} matches no dense layer ({_some(paths)}).{nearest(pattern, paths)}"
            )
        chosen |= found
    return chosen


def _some(paths: list[str]) -> str:
    """A few paths that differ by their last names, such as decoder/layers/attn/q_proj."""
    usual = [path for path in paths if path.startswith("decoder/")] or paths
    by_name = {path.rpartition("/")[2]: path for path in reversed(usual)}
    shown = sorted(by_name.values())
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _is_dense(value: Any) -> bool:
    # Those of convolutions have four axes, and scanned dense layers three.
    return isinstance(value, dict) and len(getattr(value.get("kernel"), "shape", ())) in (2, 3)
