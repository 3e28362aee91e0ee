"""Causal attention over packed rows, whose segments must not see each other.

`Segments` stands where attention takes a mask, so that a back end can read the ids of a row, of T numbers,
instead of a mask of T x T. Back ends:

  dense    scores of whole rows, [B, N, T, T] in float32, as `attend` computes them: the definition
  blocked  a block of queries at a time, against the keys up to its end; scores are computed again for the
           gradient. Runs everywhere
  splash   TPU: JAX's splash attention
  pallas   GPU: JAX's flash attention in Triton
  cudnn    GPU: cuDNN's fused attention on packed rows; skips what lies outside of a segment

All give zeros at padding, and no gradient to it. "auto" is no back end but what `choose_back_end` turns into one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from janus_jax.models import attention_kernels as kernels
from janus_jax.models.attention import attend
from janus_jax.models.layout import Layout

BACK_ENDS = ("dense", "blocked", "splash", "pallas", "cudnn")
PLATFORM = {"splash": "tpu", "pallas": "gpu", "cudnn": "gpu"}  # of the back ends that need one
OLD_NAMES = {"xla": "dense"}
_BLOCK = 512  # queries of "blocked"


@flax.struct.dataclass
class Segments:
    """Where the segments of packed rows lie.

    Attributes:
      ids: int32 [B, T]: 1, 2, ... from the start of a row, 0 on its padding, which ends it.
      back_end: of `BACK_ENDS`.
      layout: of the rows on devices.
    """

    ids: jax.Array
    back_end: str = flax.struct.field(pytree_node=False, default="blocked")
    layout: Layout = flax.struct.field(pytree_node=False, default=Layout())


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
    compute = _COMPUTE[segments.back_end]
    if segments.back_end in PLATFORM:
        heads = ("rows", None, "heads", None)
        compute = segments.layout.per_shard(compute, (heads, heads, heads, ("rows", None)), heads)
    out = jnp.where(real, compute(q, k, v, segments.ids), 0)
    return checkpoint_name(out, kernels.ATTENTION_NAME)


def blocked(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, block: int = _BLOCK
) -> jax.Array:
    """A block of queries after the other, each against the keys up to its own end.

    The scores of one block exist at a time, also in the backward pass, which computes them again.
    """
    length = q.shape[1]
    if length <= block:
        return _part(q, k, v, ids, 0)
    part = jax.checkpoint(_part, static_argnums=4)
    ends = [*range(block, length, block), length]
    starts = [0, *ends[:-1]]
    return jnp.concatenate(
        [
            part(q[:, start:end], k[:, :end], v[:, :end], ids[:, :end], start)
            for start, end in zip(starts, ends, strict=True)
        ],
        axis=1,
    )


def _part(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, start: int) -> jax.Array:
    """The queries from `start` on, [B, T - start, N, H], against all T keys."""
    length = ids.shape[1]
    same = ids[:, start:, None] == ids[:, None, :]
    real = ids[:, None, :] > 0
    before = jnp.arange(start, length)[:, None] >= jnp.arange(length)
    return attend(q, k, v, same & real & before)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    return _part(q, k, v, ids, 0)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    few = jnp.max(ids) <= kernels.MAX_SEGMENTS
    return jax.lax.cond(few, kernels.cudnn_packed, blocked, q, k, v, ids)


_COMPUTE: dict[str, Callable[..., jax.Array]] = {
    "dense": _dense,
    "blocked": blocked,
    "splash": kernels.splash,
    "pallas": kernels.triton,
    "cudnn": _cudnn,
}


def choose_back_end(platform: str, head_dim: int, dtype: jnp.dtype) -> str:
    """The back end that "auto" stands for.

    On GPUs the fastest that gives this card's dense attention its numbers and gradients on a small example, so
    a driver or version that breaks a kernel costs speed and no more.

    Args:
      platform: "tpu", "gpu" or "cpu", of the devices of the mesh.
      head_dim: H.
      dtype: of the activations.
    """
    if platform == "tpu":
        return "splash" if head_dim % 128 == 0 else "blocked"
    if platform == "gpu" and jax.default_backend() == "gpu":
        for name in ("cudnn", "pallas"):
            if agrees_with_dense(name, head_dim, dtype):
                return name
    return "blocked"


def resolve_back_end(name: str, platform: str, head_dim: int, dtype: jnp.dtype) -> str:
    """`name`, or what "auto" or a name of an earlier version stands for."""
    if name == "auto":
        return choose_back_end(platform, head_dim, dtype)
    return OLD_NAMES.get(name, name)


def agrees_with_dense(back_end: str, head_dim: int, dtype: jnp.dtype) -> bool:
    """Whether a back end runs here, and gives what "dense" gives, gradients too, for two unlike rows."""
    lengths = ((100, 70, 70), (1, 250))
    ids = jnp.stack(
        [
            jnp.repeat(jnp.arange(1, len(row) + 1), jnp.asarray(row), total_repeat_length=256)
            * (jnp.arange(256) < sum(row))
            for row in lengths
        ]
    ).astype(jnp.int32)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, out = (jax.random.normal(key, (2, 256, 2, head_dim), dtype) for key in keys)

    @functools.partial(jax.jit, static_argnums=0)
    def outcome(name, q, k, v):
        call = lambda *x: packed_attention(*x, Segments(ids, name))
        result, pullback = jax.vjp(call, q, k, v)
        return result, *pullback(out)

    try:
        pairs = zip(outcome(back_end, q, k, v), outcome("dense", q, k, v), strict=True)
        return all(_close(a, b) for a, b in pairs)
    except Exception:  # whatever a kernel that this device lacks raises
        return False


def _close(a: jax.Array, b: jax.Array) -> bool:
    """By root mean squares, as bfloat16 and TF32 allow; also false where anything is not finite."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    error = jnp.sqrt(jnp.mean(jnp.square(a - b)) / jnp.mean(jnp.square(b)))
    return bool(error < 0.03)
