"""Where the activations of a training step lie on a mesh."""

from __future__ import annotations

import dataclasses
import functools
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

    def pin_params(self, params: Any) -> Any:
        return jax.lax.with_sharding_constraint(params, param_shardings(params, self.mesh))

    def pin_state(self, state: Any) -> Any:
        return jax.lax.with_sharding_constraint(state, state_shardings(state, self.mesh))

    def microbatches(self, x: jax.Array, count: int) -> jax.Array:
        out = rearrange(x, "(d n b) ... -> n (d b) ...", d=self._shards("rows"), n=count)
        spec = P(None, ACTIVATION_AXES["rows"])
        return jax.lax.with_sharding_constraint(out, NamedSharding(self.mesh, spec))

    def over_rows(self, function: Callable[..., jax.Array], name: str) -> Callable[..., jax.Array]:
        def call(params: Any, *arrays: jax.Array) -> jax.Array:
            shards = self._shards("rows")
            if shards == 1 or any(x.shape[0] % shards for x in arrays):
                return function(params, *arrays)
            specs = self._fsdp_specs(name, params)
            rows = P(ACTIVATION_AXES["rows"])
            gather = functools.partial(jax.lax.all_gather, axis_name="fsdp", tiled=True)

            def of_device(params: Any, *arrays: jax.Array) -> jax.Array:
                whole = lambda x, spec: gather(x, axis=spec.index("fsdp")) if "fsdp" in spec else x
                return function(jax.tree.map(whole, params, specs), *arrays)

            return jax.shard_map(
                of_device,
                mesh=self.mesh,
                in_specs=(specs, *(rows for _ in arrays)),
                out_specs=rows,
                axis_names=set(ACTIVATION_AXES["rows"]),  # "tensor" is left to the compiler
                check_vma=False,
            )(params, *arrays)

        return call

    def _fsdp_specs(self, name: str, params: Any) -> Any:
        """How the parameters below a path are split over fsdp alone."""
        parts = name.split("/")
        specs = param_specs(
            functools.reduce(lambda x, part: {part: x}, reversed(parts), params), self.mesh
        )
        specs = functools.reduce(lambda x, part: x[part], parts, specs)
        alone = lambda axes: (
            "fsdp" if "fsdp" in ((axes,) if isinstance(axes, str) else axes or ()) else None
        )
        return jax.tree.map(
            lambda spec: P(*map(alone, spec)), specs, is_leaf=lambda x: isinstance(x, P)
        )

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
