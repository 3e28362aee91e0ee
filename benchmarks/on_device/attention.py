"""Packed attention of one layer, forward and backward, by every back end of `models.packed_attention`.

Their times, and whether they compute the same, on rows of different numbers of segments with padding at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.on_device.facts import best
from benchmarks.on_device.setting import Results, Setting
from janus_jax.config import JanusConfig
from janus_jax.models import BACK_ENDS, Segments, packed_attention
from janus_jax.models.packed_attention import PLATFORM

PADDING = 64


def attention(setting: Setting) -> Results:
    """Milliseconds, and the relative rms error of output and gradients against float32."""
    import jax
    import jax.numpy as jnp

    config = setting.config()
    heads, size = config.decoder.heads, config.decoder.head_dim
    ids = jnp.asarray(segment_ids(config))
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (*ids.shape, heads, size)
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in inputs]
        want = _fetch(_both(_dense, ids)(*wide))
    rows: dict[str, Any] = {}
    for name in here(BACK_ENDS):
        call = lambda q, k, v, ids, name=name: packed_attention(q, k, v, Segments(ids, name))
        try:
            rows[name] = _measure(call, ids, inputs, want)
        except Exception as error:  # a back end that this JAX or this card lacks
            rows[name] = {"problem": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        yield {f"{len(ids)} rows of {ids.shape[1]}, {heads} heads of {size}": rows}


def _measure(
    call: Callable, ids: Any, inputs: list[Any], want: list[np.ndarray]
) -> dict[str, float]:
    import jax

    both = _both(call, ids)
    forward = jax.jit(lambda q, k, v: call(q, k, v, ids))
    errors = [
        float(np.sqrt(((native - theirs) ** 2).mean() / (theirs**2).mean()))
        for native, theirs in zip(_fetch(both(*inputs)), want, strict=True)
    ]
    return {
        "forward_ms": best(lambda: forward(*inputs[:3]), 10) * 1000,
        "both_ms": best(lambda: both(*inputs), 10) * 1000,
        "output_error": errors[0],
        "gradient_error": max(errors[1:]),
    }


def _both(call: Callable, ids: Any) -> Callable:
    """(q, k, v, gradient of the output) -> ((loss, output), gradients of q, k and v)."""
    import jax
    import jax.numpy as jnp

    real = (ids > 0)[..., None, None]

    def loss(q, k, v, out):
        y = jnp.where(real, call(q, k, v, ids), 0)
        return jnp.sum(y.astype(jnp.float32) * out.astype(jnp.float32)), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def _fetch(result: Any) -> list[np.ndarray]:
    (_, y), grads = result
    return [np.asarray(x, np.float32) for x in (y, *grads)]


def here(names: Sequence[str]) -> list[str]:
    """Those back ends that are not for another kind of device."""
    import jax

    return [name for name in names if PLATFORM.get(name, "") in ("", jax.default_backend())]


def segment_ids(config: JanusConfig) -> np.ndarray:
    """Two rows: pictures with their prompts and a long text, and a few long texts; [2, T]."""
    T = 4096 if config.vq.num_codes == 576 else 512
    picture, real = config.vq.num_codes + 29, T - PADDING
    pictures = min(5, real // picture - 1)
    rows = ([picture] * pictures + [real - pictures * picture], [real // 2, real - real // 2])
    ids = [np.repeat(np.arange(len(lengths)) + 1, lengths) for lengths in rows]
    return np.stack([np.pad(row, (0, T - len(row))) for row in ids]).astype(np.int32)


def _dense(q: Any, k: Any, v: Any, ids: Any) -> Any:
    return packed_attention(q, k, v, Segments(ids, "dense"))
