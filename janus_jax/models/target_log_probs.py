"""Log-probabilities of targets, whose logits never exist all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax.models.layout import Layout

Head = Callable[[Any, jax.Array], jax.Array]


def log_probs(
    head: Head,
    params: Any,
    hidden: jax.Array,
    positions: jax.Array,
    ids: jax.Array,
    at_once: int,
    layout: Layout,
) -> jax.Array:
    """The log-probability of each target.

    Args:
      head: (params, hidden states [..., D]) -> float32 logits [..., V].
      params: of the head, whole.
      hidden: [B, T, D].
      positions: int32 [B, ...], where each target is predicted.
      ids: int32 [B, ...], below V.
      at_once: targets of a row whose logits exist at a time, computed again for the gradient; 0 for all.
      layout: of the rows.

    Returns:
      float32 [B, ...].
    """

    def of_rows(params: Any, hidden: jax.Array, positions: jax.Array, ids: jax.Array) -> jax.Array:
        shape = ids.shape
        flat = positions.reshape(shape[0], -1, 1)
        at = jnp.take_along_axis(hidden, flat, axis=1, mode="clip")
        targets = at.shape[1]
        if not at_once or at_once >= targets:
            return _log_probs(head, params, at.reshape(*shape, -1), ids)
        ids = ids.reshape(shape[0], -1)
        count = -(-targets // at_once)
        extra = -targets % count
        pad = lambda x: jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
        slices = tuple(rearrange(pad(x), "B (s m) ... -> s B m ...", s=count) for x in (at, ids))
        part = jax.checkpoint(lambda x: _log_probs(head, params, *x), prevent_cse=False)
        out = rearrange(jax.lax.map(part, slices), "s B m -> B (s m)")
        return out[:, :targets].reshape(shape)

    return layout.over_rows(of_rows)(params, hidden, positions, ids)


def _log_probs(head: Head, params: Any, hidden: jax.Array, ids: jax.Array) -> jax.Array:
    import optax  # here, because sampling does without it

    return -optax.softmax_cross_entropy_with_integer_labels(head(params, hidden), ids)
