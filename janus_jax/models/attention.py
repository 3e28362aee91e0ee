"""Attention, its masks, and rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax.models.einsum import einsum


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Scaled dot-product attention; softmax in float32.

    Args:
      q: [B, T, N, H] queries.
      k: [B, S, K, H] keys; K divides N, and each key head serves N/K consecutive query heads.
      v: [B, S, K, H] values.
      mask: [B, T, S] bool, True = attend; None attends everywhere. A row without any True gets the
        mean of all values, not NaN.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    q = rearrange(q, "b t (k g) h -> b t k g h", k=k.shape[2])
    scores = einsum("btkgh,bskh->bkgts", q, k)
    scores = scores * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = einsum("bkgts,bskh->btkgh", weights, v)
    return rearrange(out, "b t k g h -> b t (k g) h").astype(q.dtype)


def rotary(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles, float32 [B, T, H/2].

    Source: RoFormer (arXiv:2104.09864) eq. 34, with the halves-not-pairs layout of
    `transformers.models.llama` (`rotate_half`).

    Args:
      positions: [B, T] integer positions.
      head_dim: H.
      theta: base of the frequencies theta^(-2i/H).
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads by the angles of `rotary`; float32 inside, dtype of x outside.

    Args:
      x: [B, T, ..., H], such as [B, T, N, H].
      cos, sin: [B, T, H/2].
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    over_heads = tuple(range(cos.ndim - 1, x.ndim - 1))
    cos, sin = jnp.expand_dims(cos, over_heads), jnp.expand_dims(sin, over_heads)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def causal_mask(length: int) -> jax.Array:
    """[1, T, T] bool: each position attends to itself and what came before."""
    return jnp.tril(jnp.ones((1, length, length), dtype=bool))


def segment_mask(segment_ids: jax.Array) -> jax.Array:
    """Causal mask of packed rows: [B, T] integer ids -> [B, T, T] bool.

    A position attends to earlier positions (and itself) of its own segment. Segment 0 is padding:
    it attends to nothing and nothing attends to it.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    real = segment_ids[:, None, :] > 0
    return same & real & causal_mask(segment_ids.shape[1])
