"""Causal attention over packed rows, whose segments must not see each other.

`Segments` stands where attention takes a mask, so that a back end can read the ids of a row, of T numbers,
instead of a mask of T x T. Back ends:

  xla     scores of whole rows, [B, N, T, T] in float32, as `attend` computes them; runs everywhere
  pallas  JAX's flash attention for GPUs in Triton (`jax.experimental.pallas.ops.gpu.attention`)
  cudnn   the fused attention of cuDNN on packed rows; skips what lies outside of a segment

All give zeros at padding, and no gradient to it.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from janus_jax.models.attention import attend, segment_mask

BACK_ENDS = ("xla", "pallas", "cudnn")
MAX_SEGMENTS = 64  # of a row, for cuDNN; rows with more are computed by "xla"
_BLOCK = 128  # of queries and keys; Pallas's kernels need a multiple of it


@flax.struct.dataclass
class Segments:
    """Where the segments of packed rows lie.

    Attributes:
      ids: int32 [B, T]: 1, 2, ... from the start of a row, 0 on its padding, which ends it.
      back_end: of `BACK_ENDS`.
    """

    ids: jax.Array
    back_end: str = flax.struct.field(pytree_node=False, default="xla")


def packed_attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments) -> jax.Array:
    """Each position attends to itself and to what came before it in its segment.

    Args:
      q: [B, T, N, H] queries.
      k, v: [B, T, K, H]; K divides N.
      segments: of the rows.

    Returns:
      [B, T, N, H] in the dtype of q, zeros at padding.

    Raises:
      ValueError: the back end is unknown.
    """
    if segments.back_end not in BACK_ENDS:
        raise ValueError(f"back end must be one of {BACK_ENDS}, not {segments.back_end!r}")
    real = (segments.ids > 0)[..., None, None]
    # What a kernel leaves at padding may be anything, and so may its gradient there.
    q, k, v = (jnp.where(real, x, 0) for x in (q, k, v))
    compute = {"xla": _xla, "pallas": pallas_attention, "cudnn": _cudnn}[segments.back_end]
    return jnp.where(real, compute(q, k, v, segments.ids), 0)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    return attend(q, k, v, segment_mask(ids))


def pallas_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """As `packed_attention`; rows are padded to a multiple of the kernel's blocks."""
    from jax.experimental.pallas.ops.gpu import attention as kernels

    T, group = q.shape[1], q.shape[2] // k.shape[2]
    extra = -T % _BLOCK
    pad = lambda x: jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2))
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    sizes = kernels.BlockSizes(
        block_q=_BLOCK,
        block_k=_BLOCK // 2,
        block_q_dkv=_BLOCK // 2,
        block_kv_dkv=_BLOCK // 2,
        block_q_dq=_BLOCK // 2,
        block_kv_dq=_BLOCK // 2,
    )
    out = kernels.mha(
        *map(pad, (q, k, v, ids)),
        sm_scale=q.shape[-1] ** -0.5,
        causal=True,
        block_sizes=sizes,
        interpret=interpret,
    )
    return out[:, :T]


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    few = jnp.max(ids) <= MAX_SEGMENTS
    return jax.lax.cond(few, _cudnn_packed, _xla, q, k, v, ids)


def _cudnn_packed(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
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
