"""Where the activations of a training step lie on a mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.models.layout import Axes, Layout
from janus_jax.parallel.mesh import BATCH_AXES
from janus_jax.parallel.rules import param_shardings, param_specs, state_shardings

# Logical axis of an activation -> mesh axes.
ACTIVATION_AXES: dict[str, tuple[str, ...]] = {
    "rows": BATCH_AXES,
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshLayout(Layout):
    """Rows over data and fsdp, heads and widths over tensor; see `Layout`."""

    mesh: Mesh

    def pin(self, x: jax.Array, *axes: str | None) -> jax.Array:
        if len(axes) != x.ndim:
            raise ValueError(f"{len(axes)} axes for an array of shape {x.shape}")
        return jax.lax.with_sharding_constraint(x, self._sharding(axes, x.shape))

    def gather(self, name: str, params: Any) -> Any:
        tree: Any = params
        for part in reversed(name.split("/")):
            tree = {part: tree}
        specs = param_specs(tree, self.mesh)
        for part in name.split("/"):
            specs = specs[part]
        whole = lambda spec: NamedSharding(self.mesh, P(*map(_without_fsdp, spec)))
        shardings = jax.tree.map(whole, specs, is_leaf=lambda x: isinstance(x, P))
        return jax.lax.with_sharding_constraint(params, shardings)

    def pin_params(self, params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, param_shardings(params, self.mesh))

    def pin_state(self, state: Any) -> Any:
        return jax.lax.with_sharding_constraint(state, state_shardings(state, self.mesh))

    def microbatches(self, x: jax.Array, count: int) -> jax.Array:
        out = rearrange(x, "(d n b) ... -> n (d b) ...", d=self._shards("rows"), n=count)
        spec = P(None, ACTIVATION_AXES["rows"])
        return jax.lax.with_sharding_constraint(out, NamedSharding(self.mesh, spec))

    def over_rows(self, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def call(params: Any, *arrays: jax.Array) -> jax.Array:
            shards = self._shards("rows")
            if shards == 1 or any(x.shape[0] % shards for x in arrays):
                return function(params, *arrays)
            rows = P(ACTIVATION_AXES["rows"])
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(P(), *(rows for _ in arrays)),
                out_specs=rows,
                axis_names=set(ACTIVATION_AXES["rows"]),  # "tensor" is left to the compiler
                check_vma=False,
            )(params, *arrays)

        return call

    def per_shard(
        self, function: Callable[..., jax.Array], inputs: Sequence[Axes], output: Axes
    ) -> Callable[..., jax.Array]:
        def call(*args: jax.Array) -> jax.Array:
            # An axis is split for all arrays or for none, or shards would not belong together.
            split = {name for axes in inputs for name in axes if name}
            for axes, x in zip(inputs, args, strict=True):
                split -= {
                    name
                    for name, size in zip(axes, x.shape, strict=True)
                    if name and size % self._shards(name)
                }
            spec = lambda axes: P(*(ACTIVATION_AXES[a] if a in split else None for a in axes))
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=tuple(map(spec, inputs)),
                out_specs=spec(output),
                check_vma=False,
            )(*args)

        return call

    def _sharding(self, axes: Axes, shape: Sequence[int]) -> NamedSharding:
        whole = lambda name, size: name is None or size % self._shards(name)
        return NamedSharding(
            self.mesh,
            P(
                *(
                    None if whole(name, size) else ACTIVATION_AXES[name]
                    for name, size in zip(axes, shape, strict=True)
                )
            ),
        )

    def _shards(self, name: str) -> int:
        return math.prod(self.mesh.shape[axis] for axis in ACTIVATION_AXES[name])


def _without_fsdp(axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    names = (axes,) if isinstance(axes, str) else (axes or ())
    kept = tuple(name for name in names if name != "fsdp")
    return (kept[0] if len(kept) == 1 else kept) or None
