"""One table that says how every parameter is sharded.

`RULES` maps parameter paths to logical axes; `MESH_AXES` maps logical axes to mesh axes. Every
parameter must match exactly one rule, so a new parameter cannot be replicated by accident.
Rules leave out the layer axis of scanned blocks: it is never sharded and is added here.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.errors import UserError
from janus_jax.models.layers import KERNEL_SCALE, LORA_A, LORA_B, LORA_SCALE
from janus_jax.parallel.mesh import replicated

# Logical axis -> mesh axes, in order of preference: an axis that does not divide the dimension is
# dropped from the right.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # Rows only: a lookup in a table split on both dimensions makes the compiler replicate it first.
    "rows": ("fsdp", "tensor"),
    # Query, key and value lie side by side: a shard would not hold whole heads of each.
    "qkv": (),
}

_LAYER = r"decoder/layers(_\d+)?/"
_BLOCK = r"siglip/blocks(_\d+)?/"

# (pattern of the whole path, logical axes). () replicates a parameter of any rank.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Language model.
    (r"decoder/embed/embedding", ("rows", None)),
    (_LAYER + r"attn/[qkv]_proj/kernel", ("embed", "heads")),
    (_LAYER + r"attn/o_proj/kernel", ("heads", "embed")),
    (_LAYER + r"mlp/(gate|up)_proj/kernel", ("embed", "mlp")),
    (_LAYER + r"mlp/down_proj/kernel", ("mlp", "embed")),
    (_LAYER + r"(attn|mlp)_norm/scale", (None,)),
    (r"decoder/final_norm/scale", (None,)),
    (r"decoder/lm_head/kernel", ("embed", "vocab")),
    # Understanding encoder.
    (r"siglip/patch_embed/kernel", (None, None, None, "embed")),
    (r"siglip/patch_embed/bias", (None,)),
    (r"siglip/pos_embed", (None, "embed")),
    (_BLOCK + r"qkv/kernel", ("embed", "qkv")),
    (_BLOCK + r"qkv/bias", ("qkv",)),
    (_BLOCK + r"proj/kernel", ("heads", "embed")),
    (_BLOCK + r"fc1/kernel", ("embed", "mlp")),
    (_BLOCK + r"fc1/bias", ("mlp",)),
    (_BLOCK + r"fc2/kernel", ("mlp", "embed")),
    (_BLOCK + r"(proj|fc2)/bias", (None,)),
    (_BLOCK + r"norm[12]/(scale|bias)", (None,)),
    (r"siglip/norm/(scale|bias)", (None,)),
    # Adaptors and image head.
    (r"und_adaptor/fc1/kernel", ("embed", "mlp")),
    (r"gen_adaptor/fc1/kernel", (None, "mlp")),
    (r"(und|gen)_adaptor/fc1/bias", ("mlp",)),
    (r"(und|gen)_adaptor/fc2/kernel", ("mlp", "embed")),
    (r"(und|gen)_adaptor/fc2/bias", (None,)),
    (r"gen_embed/embedding", (None, None)),
    (r"image_head/proj/kernel", ("embed", None)),
    (r"image_head/proj/bias", (None,)),
    (r"image_head/head/kernel", ("embed", "vocab")),
    (r"image_head/head/bias", ("vocab",)),
    # The image tokenizer is small and convolutional: copied everywhere.
    (r"vq/.+", ()),
    # Heads that only exist while a stage trains.
    (r"aux/.+", ()),
)


def _adapters() -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """Rules of what lies beside a kernel: each is cut as the side of the kernel that it has in common."""
    found = []
    for pattern, axes in RULES:
        if pattern.endswith("/kernel") and len(axes) == 2:
            beside = pattern.removesuffix("kernel")
            found.append((beside + LORA_A, (axes[0], None)))
            found.append((beside + LORA_B, (None, axes[1])))
            found.append((beside + LORA_SCALE, ()))
            found.append((beside + KERNEL_SCALE, (axes[1],)))
    return tuple(found)


_COMPILED = tuple((re.compile(pattern), axes) for pattern, axes in (*RULES, *_adapters()))
_STACKED = re.compile(r"(decoder/layers|siglip/blocks)/.+")


def path_name(path: tuple[Any, ...]) -> str:
    """A jax key path as "decoder/layers/attn/q_proj/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matching_rules(name: str) -> list[tuple[str, ...]]:
    """The logical axes of every rule that matches a parameter path, without the layer axis."""
    return [axes for pattern, axes in _COMPILED if pattern.fullmatch(name)]


def param_specs(params: Any, mesh: Mesh) -> Any:
    """How to shard every parameter.

    Args:
      params: the parameter tree, or its shapes (`jax.eval_shape`); either layer layout.
      mesh: from `make_mesh`. A dimension that a mesh axis does not divide stays whole.

    Returns:
      The same tree with a `PartitionSpec` for every leaf.

    Raises:
      UserError: a parameter matches no rule, several rules, or a rule of another rank.
    """
    return jax.tree_util.tree_map_with_path(lambda p, leaf: _spec(path_name(p), leaf, mesh), params)


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """`param_specs` as `NamedSharding`s: for `out_shardings`, `device_put` or restoring."""
    return _shardings(param_specs(params, mesh), mesh)


def shard_params(params: Any, mesh: Mesh) -> Any:
    """Puts parameters (host or device arrays, the same in every process) on the mesh."""
    return jax.device_put(params, param_shardings(params, mesh))


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """How to shard a training state: what mirrors a parameter lies where the parameter lies.

    Args:
      state: tree of arrays or shapes, such as an optax state. A leaf whose path ends in a
        parameter's path and that has its rank (Adam moments, averaged weights) takes its sharding.
      mesh: from `make_mesh`.

    Returns:
      The same tree of `NamedSharding`s; counters, keys and everything else replicated.
    """

    def sharding(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            axes = matching_rules(name)
            if len(axes) == 1 and (not axes[0] or _rank(name, axes[0]) == len(leaf.shape)):
                return NamedSharding(mesh, _spec(name, leaf, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def _spec(name: str, leaf: Any, mesh: Mesh) -> P:
    matches = matching_rules(name)
    if len(matches) != 1:
        count = "no" if not matches else str(len(matches))
        raise UserError(
            f"parameter {name!r} matches {count} sharding rules, it must match one: "
            "see RULES in janus_jax/parallel/rules.py"
        )
    axes = matches[0]
    if not axes:
        return P()
    if _rank(name, axes) != len(leaf.shape):
        raise UserError(f"parameter {name!r} has shape {tuple(leaf.shape)}, its rule says {axes}")
    if _STACKED.fullmatch(name):
        axes = (None, *axes)
    return P(*(_mesh_axes(axis, size, mesh) for axis, size in zip(axes, leaf.shape, strict=True)))


def _rank(name: str, axes: tuple[str | None, ...]) -> int:
    return len(axes) + bool(_STACKED.fullmatch(name))


def _mesh_axes(axis: str | None, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    names = MESH_AXES[axis] if axis else ()
    while names:
        shards = 1
        for name in names:
            shards *= mesh.shape[name]
        if size % shards == 0:
            return names[0] if len(names) == 1 else names
        names = names[:-1]
    return None


def _shardings(specs: Any, mesh: Mesh) -> Any:
    is_spec = lambda x: isinstance(x, P)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
