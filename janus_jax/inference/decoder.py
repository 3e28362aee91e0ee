"""The language model of sampling: the arithmetic of `models.Decoder` on fused, unrolled weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.config import DecoderConfig
from janus_jax.inference import gpu_attention, kv_cache
from janus_jax.inference.matmul import matmul
from janus_jax.models.attention import apply_rotary, rotary
from janus_jax.models.layers import gelu, rms_norm

Angles = tuple[jax.Array, jax.Array]
Attended = tuple[jax.Array, Any]  # [..., T, K, G, H], and the layer's cache
# (qkv [..., T, K, G + 2, H] not rotated, angles of `rotary`, cache of the layer) -> its result
Attention = Callable[[jax.Array, Angles, Any], Attended]


def embed_text(weights: Any, ids: jax.Array) -> jax.Array:
    """Token ids [...] -> [..., D]; ids beyond the table are clamped."""
    return _rows(weights["embed"], ids)


def embed_codes(weights: Any, codes: jax.Array) -> jax.Array:
    """Image codes [...] -> [..., D], from the table of all codes behind their adaptor."""
    return _rows(weights["codes"], codes)


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    rows = jnp.take(table, ids, axis=0, mode="clip")
    return jax.lax.bitcast_convert_type(rows, jnp.bfloat16) if rows.dtype == jnp.uint16 else rows


def decode(
    weights: Any,
    config: DecoderConfig,
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array | None,
    cache: kv_cache.Cache,
    index: jax.Array | int,
    starts: jax.Array | None = None,
) -> tuple[jax.Array, kv_cache.Cache]:
    """Runs all blocks on T tokens of each row and adds them to the cache.

    Args:
      weights: from `weights.fuse_params`.
      config: geometry.
      x: [..., T, D] embeddings in the compute dtype; the leading axes are rows.
      positions: [..., T] rotary positions.
      mask: bool [..., T, S], True = attend; not read with `starts`.
      cache: S slots a row.
      index: slot of the first token, the same in every row.
      starts: int32 [...]: T is 1, rows attend to their slots from here to `index`, by the kernel for GPUs.

    Returns:
      Hidden states after the final norm [..., T, D], and the cache.
    """
    if starts is not None:
        return run_layers(weights, config, x, positions, cache, kernel_attention(index, starts))

    def attention(qkv: jax.Array, angles: Angles, slot: kv_cache.LayerCache) -> Attended:
        rotated = apply_rotary(qkv[..., :-1, :], *angles)
        slot = kv_cache.append(slot, rotated[..., -1, :], qkv[..., -1, :], index)
        return kv_cache.attend(rotated[..., :-1, :], slot, mask), slot

    return run_layers(weights, config, x, positions, cache, attention)


def kernel_attention(index: jax.Array, starts: jax.Array) -> Attention:
    """Of one token of each row by the kernel for GPUs: writes slot `index`, attends from `starts` on."""

    def attention(qkv: jax.Array, angles: Angles, slot: kv_cache.LayerCache) -> Attended:
        cos, sin = angles
        token = (qkv[..., 0, :, :, :], (cos[..., 0, :], sin[..., 0, :]))
        return gpu_attention.decode_attention(*token, slot, index, starts)

    return attention


def run_layers(
    weights: Any,
    config: DecoderConfig,
    x: jax.Array,
    positions: jax.Array,
    cache: Iterable[Any],
    attention: Attention,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """All blocks with a given attention.

    Args:
      weights, config, x, positions: see `decode`.
      cache: what `attention` gets of each layer.
      attention: see `Attention`.

    Returns:
      Hidden states after the final norm [..., T, D], and what `attention` has made of the cache.
    """
    angles = rotary(positions, config.head_dim, config.rope_theta)
    updated = []
    for layer, slot in zip(weights["layers"], cache, strict=True):
        y = rms_norm(x, layer["attn_norm"], config.norm_eps, x.dtype)
        qkv = matmul(y, layer["qkv"], dtype=x.dtype)  # [..., T, K, G + 2, H]
        y, slot = attention(qkv, angles, slot)
        x = x + matmul(y.reshape(*x.shape[:-1], -1), layer["o"], dtype=x.dtype)
        y = rms_norm(x, layer["mlp_norm"], config.norm_eps, x.dtype)
        gate_up = matmul(y, layer["gate_up"], dtype=x.dtype)  # [..., T, 2, F]
        y = jax.nn.silu(gate_up[..., 0, :]) * gate_up[..., 1, :]
        x = x + matmul(y, layer["down"], dtype=x.dtype)
        updated.append(slot)
    return rms_norm(x, weights["final_norm"], config.norm_eps, x.dtype), tuple(updated)


def text_logits(weights: Any, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] -> float32 [..., V]."""
    return matmul(hidden, weights["lm_head"])


def image_logits(weights: Any, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., D] -> float32 [..., codebook_size]."""
    head = weights["image_head"]
    x = matmul(hidden, head["proj"], dtype=hidden.dtype) + head["proj_bias"]
    return matmul(gelu(x), head["head"]) + head["head_bias"].astype(jnp.float32)
