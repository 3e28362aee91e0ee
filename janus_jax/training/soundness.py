"""Whether parameters are worth a checkpoint."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

# No weight of a network that works is anywhere near; the squares of much larger ones overflow.
ABSURD = 1e6


@jax.jit
def _largest(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    # A maximum keeps NaN.
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x.astype(jnp.float32))) for x in floats if x.size]))


def unsound(*trees: Any) -> str | None:
    """Why trees of arrays must not be saved: their largest value is not finite, or absurd. None if they may."""
    largest = float(_largest(trees))
    if not math.isfinite(largest):
        return "the parameters are not finite"
    return f"the largest parameter is {largest:.1e}" if largest > ABSURD else None
