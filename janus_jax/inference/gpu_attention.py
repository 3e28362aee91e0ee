"""One decode step of attention on a GPU as one kernel: rotary positions, the cache's new slot, attention.

XLA makes five kernels of it, and reads every slot that the cache has room for. This one (Triton, through
Pallas) reads the slots that are filled, whose number it gets as a value: so the cache may have its full size from
the start, and one program serves all steps. Each program of the grid has one key head of one row, and every
`splits`-th block of its slots; the parts are put together afterwards (flash decoding, Dao et al. 2023).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

BLOCK = 64  # slots that a program reads at once; the best of 32, 64 and 128 on an H200
_PROGRAMS = 256  # wanted at least, so that few rows use the whole chip
_NOTHING = -1e30  # stands for minus infinity, whose differences are not numbers


def supported(cache_dtype: Any, head_dim: int) -> bool:
    """Whether the kernel can be used: no int8, and a head size that Triton can load."""
    return jnp.issubdtype(cache_dtype, jnp.floating) and head_dim & (head_dim - 1) == 0


def decode_attention(
    qkv: jax.Array,
    angles: tuple[jax.Array, jax.Array],
    layer: dict[str, jax.Array],
    index: jax.Array,
    starts: jax.Array,
    interpret: bool = False,
    block: int = BLOCK,
    warps: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Writes one token's key and value to the cache and attends to its slots `starts`, ..., `index`.

    Args:
      qkv: [..., K, G + 2, H], not rotated: G queries of each key head, its key, its value.
      angles: cosines and sines of `models.attention.rotary`, float32 [..., H/2].
      layer: {"k", "v"}: [..., K, S, H], or with the axes before S merged. It may have more rows than there are
        tokens: the first ones are used, and the others stay.
      index: int32, the slot of this token: a scalar for all rows, or [...].
      starts: int32 [...], the first slot of each row.
      interpret: computes without a GPU, slowly.
      block, warps: of the kernel; both powers of two. The defaults were the fastest on an H200.

    Returns:
      [..., K, G, H] in the dtype of qkv, and the cache; the one that was given must not be used again.
    """
    lead, (K, G, H) = qkv.shape[:-3], (qkv.shape[-3], qkv.shape[-2] - 2, qkv.shape[-1])
    shape, S = layer["k"].shape, layer["k"].shape[-2]
    keys, values = (layer[name].reshape(-1, S, H) for name in "kv")
    N = math.prod(lead) * K
    index = jnp.broadcast_to(index, lead)
    splits = min(-(-_PROGRAMS // N), -(-S // block))
    warps = warps or (8 if splits == 1 else 4)
    cos, sin = (x.reshape(-1, H // 2) for x in angles)
    whole = lambda i, j: (i, 0, 0)
    of_row = lambda i, j: (i // K, 0)
    parts = [jax.ShapeDtypeStruct((N, splits, G, H), qkv.dtype if splits == 1 else jnp.float32)]
    parts += [jax.ShapeDtypeStruct((N, splits, G), jnp.float32)] * 2
    part = lambda i, j: (i, j, 0)
    cache_spec = pl.BlockSpec((None, S, H), whole)
    acc, top, total, keys, values = pl.pallas_call(
        partial(_kernel, queries=G, block=block, splits=splits),
        grid=(N, splits),
        in_specs=[
            pl.BlockSpec((None, G + 2, H), whole),
            pl.BlockSpec((None, H), of_row),
            pl.BlockSpec((None, H), of_row),
            pl.BlockSpec((1,), lambda i, j: (i // K,)),
            pl.BlockSpec((1,), lambda i, j: (i // K,)),
            cache_spec,
            cache_spec,
        ],
        out_specs=[
            pl.BlockSpec((None, None, G, H), lambda i, j: (i, j, 0, 0)),
            pl.BlockSpec((None, None, G), part),
            pl.BlockSpec((None, None, G), part),
            cache_spec,
            cache_spec,
        ],
        out_shape=[*parts, *(jax.ShapeDtypeStruct(keys.shape, keys.dtype),) * 2],
        input_output_aliases={5: 3, 6: 4},
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=2),
        interpret=interpret,
        name="decode_attention",
    )(
        qkv.reshape(N, G + 2, H),
        jnp.concatenate([cos, cos], -1),
        jnp.concatenate([-sin, sin], -1),
        index.reshape(-1).astype(jnp.int32),
        starts.reshape(-1).astype(jnp.int32),
        keys,
        values,
    )
    layer = layer | {"k": keys.reshape(shape), "v": values.reshape(shape)}
    if splits == 1:
        return acc.reshape(*lead, K, G, H), layer
    share = jnp.exp(top - jnp.max(top, axis=1, keepdims=True))
    out = jnp.einsum("nsgh,nsg->ngh", acc, share) / jnp.sum(total * share, axis=1)[..., None]
    return out.reshape(*lead, K, G, H).astype(qkv.dtype), layer


def _kernel(
    qkv_ref,
    cos_ref,
    sin_ref,
    index_ref,
    start_ref,
    keys_ref,
    values_ref,
    acc_ref,
    top_ref,
    total_ref,
    new_keys_ref,
    new_values_ref,
    *,
    queries: int,
    block: int,
    splits: int,
):
    """One key head of one row, one split. Each lane of `block` keeps a softmax of its own until the end."""
    split = pl.program_id(1)
    H = cos_ref.shape[0]
    index, start = index_ref[0], start_ref[0]
    cos, sin = cos_ref[:], sin_ref[:]
    swapped = (jnp.arange(H) + H // 2) % H

    def rotated(i: int) -> jax.Array:
        x = qkv_ref[i, :].astype(jnp.float32)
        other = plgpu.load(qkv_ref.at[i, swapped]).astype(jnp.float32)
        return (x * cos + other * sin).astype(qkv_ref.dtype).astype(jnp.float32)

    key = rotated(queries).astype(keys_ref.dtype)
    value = qkv_ref[queries + 1, :].astype(values_ref.dtype)

    @pl.when(split == 0)
    def _():
        new_keys_ref[pl.ds(index, 1), :] = key[None]
        new_values_ref[pl.ds(index, 1), :] = value[None]

    key, value = key.astype(jnp.float32), value.astype(jnp.float32)
    first, last = start // block, pl.cdiv(index, block)
    for g in range(queries):
        query = rotated(g) * H**-0.5

        def body(i, carry, query=query):
            top, total, acc = carry
            begin = (first + split + i * splits) * block
            slot = begin + jnp.arange(block)
            seen = (slot >= start) & (slot < index)
            here = (pl.ds(begin, block), slice(None))
            k = plgpu.load(keys_ref.at[here], mask=seen[:, None], other=0.0)
            v = plgpu.load(values_ref.at[here], mask=seen[:, None], other=0.0)
            scores = jnp.sum(k.astype(jnp.float32) * query[None], axis=1)
            scores = jnp.where(seen, scores, _NOTHING)
            new = jnp.maximum(top, scores)
            keep, weight = jnp.exp(top - new), jnp.where(seen, jnp.exp(scores - new), 0.0)
            acc = acc * keep[:, None] + weight[:, None] * v.astype(jnp.float32)
            return new, total * keep + weight, acc

        empty = jnp.full((block,), _NOTHING, jnp.float32)
        carry = (empty, jnp.zeros((block,)), jnp.zeros((block, H), jnp.float32))
        blocks = jnp.maximum(pl.cdiv(last - first - split, splits), 0)
        tops, totals, acc = jax.lax.fori_loop(0, blocks, body, carry)
        own = jnp.where(split == 0, jnp.sum(key * query), _NOTHING)  # this token itself
        top = jnp.maximum(jnp.max(tops), own)
        share, own = jnp.exp(tops - top), jnp.where(split == 0, jnp.exp(own - top), 0.0)
        total = jnp.sum(totals * share) + own
        out = jnp.sum(acc * share[:, None], axis=0) + own * value
        acc_ref[g, :] = (out / total if splits == 1 else out).astype(acc_ref.dtype)
        top_ref[g], total_ref[g] = top, total
