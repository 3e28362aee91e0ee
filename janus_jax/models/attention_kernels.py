"""Kernels of packed causal attention for accelerators; `packed_attention` chooses among them.

Each takes q [B, T, N, H], k and v [B, T, K, H] and ids int32 [B, T], 0 on padding, and gives [B, T, N, H] in
the dtype of q. What it gives at padding may be anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_SEGMENTS = 64  # of a row, for cuDNN
_TRITON_BLOCK = 128  # of queries and keys; the kernels need a multiple of it
_SPLASH_BLOCKS = (512, 256, 128)  # the largest that divides a row
ATTENTION_NAME = "attention"  # of what a rematerialisation policy can keep


def triton(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """JAX's flash attention for GPUs; rows are padded to a multiple of the kernel's blocks."""
    from jax.experimental.pallas.ops.gpu import attention as kernels

    T = q.shape[1]
    q, k, v, ids = (_padded(x, _TRITON_BLOCK) for x in (q, *_all_heads(q, k, v), ids))
    sizes = kernels.BlockSizes(
        block_q=_TRITON_BLOCK,
        block_k=_TRITON_BLOCK // 2,
        block_q_dkv=_TRITON_BLOCK // 2,
        block_kv_dkv=_TRITON_BLOCK // 2,
        block_q_dq=_TRITON_BLOCK // 2,
        block_kv_dq=_TRITON_BLOCK // 2,
    )
    out = kernels.mha(
        q,
        k,
        v,
        ids,
        sm_scale=q.shape[-1] ** -0.5,
        causal=True,
        block_sizes=sizes,
        interpret=interpret,
    )
    return out[:, :T]


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """JAX's splash attention for TPUs: causal blocks above the diagonal are skipped.

    Source: `jax.experimental.pallas.ops.tpu.splash_attention`. The logarithms that its backward pass needs are
    kept with the result by remat "attention".
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    T, heads = q.shape[1], q.shape[2]
    q, k, v, ids = (_padded(x, _SPLASH_BLOCKS[-1]) for x in (q, *_all_heads(q, k, v), ids))
    length = q.shape[1]
    block = next(size for size in _SPLASH_BLOCKS if length % size == 0)
    kernel = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([kernels.CausalMask((length, length))] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        residual_checkpoint_name=ATTENTION_NAME,
        interpret=interpret,
    )
    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    q, k, v = (heads_first(x) for x in (q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v))
    out = jax.vmap(kernel)(q, k, v, segment_ids=kernels.SegmentIds(ids, ids))
    return heads_first(out)[:, :T].astype(q.dtype)


def cudnn_packed(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    """cuDNN's fused attention, for rows of at most `MAX_SEGMENTS` segments (Hopper or newer, 16-bit)."""
    # Private to JAX; the public function can tell cuDNN of lengths, but not of several segments in a row.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths, offsets = segment_offsets(ids, MAX_SEGMENTS)
    return cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )


def segment_offsets(ids: jax.Array, max_segments: int) -> tuple[jax.Array, jax.Array]:
    """Lengths int32 [B, max_segments] and starts [B, max_segments + 1] of the segments of rows [B, T].

    They are -1 where there are none. The end of the last segment is not among the starts: JAX puts those
    of all rows after each other, and one more in a row would move all that follow.
    """
    numbers = jnp.arange(1, max_segments + 1)
    lengths = jnp.sum(ids[:, :, None] == numbers, axis=1, dtype=jnp.int32)
    ends = jnp.cumsum(lengths, axis=1, dtype=jnp.int32)
    starts = jnp.pad(ends, ((0, 0), (1, 0)))
    count = jnp.sum(lengths > 0, axis=1, keepdims=True)
    offsets = jnp.where(jnp.arange(max_segments + 1) < count, starts, -1)
    return jnp.where(lengths > 0, lengths, -1), offsets


def _all_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values repeated for the query heads that they serve."""
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    return k, v


def _padded(x: jax.Array, multiple: int) -> jax.Array:
    extra = -x.shape[1] % multiple
    return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
