"""Packed attention of one layer, forward and backward, by every back end that this JAX has for the device.

Training builds [T, T] scores today ("dense"). The others are candidates: their time, and whether they compute the
same on rows of several segments with padding at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.on_device.facts import best
from benchmarks.on_device.setting import Results, Setting
from janus_jax.config import JanusConfig

PADDING = 64


def attention(setting: Setting) -> Results:
    """Milliseconds, and the relative rms error of output and gradients against float32."""
    import jax
    import jax.numpy as jnp

    config = setting.config()
    heads, size = config.decoder.heads, config.decoder.head_dim
    lengths = segment_lengths(config)
    T = sum(lengths) + PADDING
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, (1, T, heads, size), jnp.bfloat16) for key in keys]
    segments = np.pad(np.repeat(np.arange(len(lengths)) + 1, lengths), (0, PADDING))
    segments = jnp.asarray(segments)[None]
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in inputs]
        want = _fetch(_both(_dense, segments)(*wide))
    rows: dict[str, Any] = {}
    for name, call in _back_ends(lengths, setting.device).items():
        try:
            rows[name] = _measure(call, segments, inputs, want)
        except Exception as error:  # a back end that this JAX or this card lacks
            rows[name] = {"problem": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        yield {f"1 row of {T}, {heads} heads of {size}, {len(lengths)} segments": rows}


def _measure(
    call: Callable, segments: Any, inputs: list[Any], want: list[np.ndarray]
) -> dict[str, float]:
    import jax

    both = _both(call, segments)
    forward = jax.jit(lambda q, k, v: call(q, k, v, segments))
    errors = [
        float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean()))
        for ours, theirs in zip(_fetch(both(*inputs)), want, strict=True)
    ]
    return {
        "forward_ms": best(lambda: forward(*inputs[:3]), 10) * 1000,
        "both_ms": best(lambda: both(*inputs), 10) * 1000,
        "output_error": errors[0],
        "gradient_error": max(errors[1:]),
    }


def _both(call: Callable, segments: Any) -> Callable:
    """(q, k, v, gradient of the output) -> ((loss, output), gradients of q, k and v)."""
    import jax
    import jax.numpy as jnp

    real = (segments > 0)[..., None, None]

    def loss(q, k, v, out):
        y = jnp.where(real, call(q, k, v, segments), 0)
        return jnp.sum(y.astype(jnp.float32) * out.astype(jnp.float32)), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def _fetch(result: Any) -> list[np.ndarray]:
    (_, y), grads = result
    return [np.asarray(x, np.float32) for x in (y, *grads)]


def segment_lengths(config: JanusConfig) -> list[int]:
    """As in the rows of section "training": pictures with their prompts, and text up to a multiple of 128."""
    picture = config.vq.num_codes + 29
    if config.vq.num_codes == 576:
        return [picture] * 5 + [4096 - PADDING - 5 * picture]
    return [picture] * 2 + [512 - PADDING - 2 * picture]


def _back_ends(lengths: list[int], device: str) -> dict[str, Callable]:
    """The first is what the others are compared with."""
    return {
        "dense": _dense,
        "cuDNN packed": functools.partial(_cudnn, lengths),
        "cuDNN, segments of a row as a batch": functools.partial(_unpacked, lengths),
        "Pallas (Triton)": functools.partial(_pallas, device == "cpu"),
    }


def _dense(q: Any, k: Any, v: Any, segments: Any) -> Any:
    from janus_jax.models import segment_mask
    from janus_jax.models.attention import attend

    return attend(q, k, v, segment_mask(segments))


def _cudnn(lengths: list[int], q: Any, k: Any, v: Any, segments: Any) -> Any:
    """Private to JAX, and the only way to its packed layout."""
    import jax.numpy as jnp
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    del segments
    sizes = jnp.asarray([lengths], jnp.int32)
    offsets = jnp.asarray([np.cumsum([0, *lengths])], jnp.int32)
    return cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=sizes,
        kv_seqlen=sizes,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )


def _unpacked(lengths: list[int], q: Any, k: Any, v: Any, segments: Any) -> Any:
    """Each segment in a padded row of its own, by the public function: a bound, since it copies."""
    import jax
    import jax.numpy as jnp

    del segments
    starts, longest = np.cumsum([0, *lengths[:-1]]), -(-max(lengths) // 128) * 128
    index = np.minimum(starts[:, None] + np.arange(longest), q.shape[1] - 1)
    sizes = jnp.asarray(lengths, jnp.int32)
    rows = [x[0][index] for x in (q, k, v)]
    y = jax.nn.dot_product_attention(
        *rows,
        is_causal=True,
        query_seq_lengths=sizes,
        key_value_seq_lengths=sizes,
        implementation="cudnn",
    )
    out = jnp.zeros_like(q[0])
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        out = jax.lax.dynamic_update_slice(out, y[i, :length], (int(start), 0, 0))
    return out[None]


def _pallas(interpret: bool, q: Any, k: Any, v: Any, segments: Any) -> Any:
    from jax.experimental.pallas.ops.gpu import attention as pallas

    return pallas.mha(
        q, k, v, segments, sm_scale=q.shape[-1] ** -0.5, causal=True, interpret=interpret
    )
