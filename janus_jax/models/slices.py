"""A function of many items, a few of them at a time, so that its temporaries stay small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax.models.layout import Layout


def in_slices(
    function: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    items: jax.Array,
    at_once: int,
    layout: Layout,
    recompute: bool = False,
) -> jax.Array:
    """Applies a function of [items, ...] to [B, n, ...], `at_once` of the n items of every row at a time.

    Args:
      function: (params, items); items do not depend on each other.
      params: whole.
      items: [B, n, ...].
      at_once: 0 for all n.
      layout: of the rows.
      recompute: compute the function again for the gradient instead of keeping what is inside it.

    Returns:
      [B, n, ...].
    """

    def of_rows(params: Any, items: jax.Array) -> jax.Array:
        rows, n = items.shape[:2]

        def one(x: jax.Array) -> jax.Array:
            out = function(params, rearrange(x, "B n ... -> (B n) ..."))
            return rearrange(out, "(B n) ... -> B n ...", B=rows)

        if not at_once or at_once >= n:
            return one(items)
        count = -(-n // at_once)
        padding = ((0, 0), (0, count * at_once - n)) + ((0, 0),) * (items.ndim - 2)
        slices = rearrange(jnp.pad(items, padding), "B (s n) ... -> s B n ...", s=count)
        out = jax.lax.map(jax.checkpoint(one) if recompute else one, slices)
        return rearrange(out, "s B n ... -> B (s n) ...")[:, :n]

    return layout.over_rows(of_rows)(params, items)
