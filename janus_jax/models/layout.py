"""Where activations lie on devices, as far as the network has to say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from einops import rearrange

# Logical axes of an activation, one a dimension: "rows", "heads", "mlp", "vocab", or None for whole.
Axes = Sequence[str | None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One device: nothing has to be said. `parallel.MeshLayout` says it for a mesh.

    The network calls these where the compiler would otherwise have to guess, because what it guesses for a
    large mesh is to keep the weights where they are and to copy activations.
    """

    def pin(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """`x`, to be laid out by its logical axes."""
        return x

    def gather(self, name: str, params: Any) -> Any:
        """Parameters below the path `name`, such as "decoder/lm_head", whole but for the axis of tensors.

        For what a loop uses in every round: it is gathered once, and its gradient reduced once.
        """
        return params

    def pin_params(self, params: Any) -> Any:
        """Parameters, or their gradients, to be laid out as parameters are."""
        return params

    def pin_state(self, state: Any) -> Any:
        """A training state, to be laid out as its parameters are."""
        return state

    def microbatches(self, x: jax.Array, count: int) -> jax.Array:
        """Rows [B, ...] -> [count, B / count, ...], without moving any to another device."""
        return rearrange(x, "(n b) ... -> n b ...", n=count)

    def over_rows(self, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """`function(params, *arrays)` of rows, run on each device for its own rows.

        The gradient of the parameters, which all rows share, is summed over the rows of a device first and over
        devices once. The compiler alone would do the latter in every round of a loop.
        """
        return function

    def per_shard(
        self, function: Callable[..., jax.Array], inputs: Sequence[Axes], output: Axes
    ) -> Callable[..., jax.Array]:
        """`function` of the shards of its arguments, for kernels that the compiler cannot split."""
        return function
