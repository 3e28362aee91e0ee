"""Putting the features of pictures where a sequence has room for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def merge_features(embeds: jax.Array, features: jax.Array, sources: jax.Array) -> jax.Array:
    """Replaces embeddings by features, position by position.

    Args:
      embeds: [B, T, D].
      features: [B, K, D] of each row, or [1, K, D] that all rows share.
      sources: int32 [B, T], which of the K features feeds a position; -1 keeps the embedding.

    Returns:
      [B, T, D] in the dtype of `embeds`.
    """
    index = jnp.maximum(sources, 0)[..., None]
    chosen = jnp.take_along_axis(features, index, axis=1, mode="clip")
    return jnp.where(sources[..., None] >= 0, chosen.astype(embeds.dtype), embeds)


def sources_in_order(where: jax.Array) -> jax.Array:
    """`sources` of `merge_features` that fill the marked positions from the first feature on.

    Args:
      where: bool [B, T].
    """
    return jnp.where(where, jnp.cumsum(where, axis=1) - 1, -1)
