"""The decode kernel (`inference.gpu_attention`) of one layer against XLA: the same numbers, and the time."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.on_device.facts import best
from benchmarks.on_device.setting import Results, Setting

VARIANTS = ((64, 4), (64, 8), (128, 8), (32, 4))  # slots at once, warps
REPEATED = 48  # steps in one program, so that its launch does not count


def kernels(setting: Setting) -> Results:
    """Microseconds of rotary positions, cache update and attention; relative rms error against float32."""
    import jax.numpy as jnp

    if setting.device == "cpu":
        yield {"left out": "the kernel is for GPUs"}
        return
    from janus_jax.inference import gpu_attention

    config = setting.config().decoder
    K, G, H = config.kv_heads, config.heads // config.kv_heads, config.head_dim
    slots, index = PROMPT + 576, PROMPT + 288
    for n in setting.images:
        make = _random((2, n), K, G, H, slots)
        read = 2 * 2 * n * K * index * H * 2
        want = _plain(*make(jnp.float32), index, index + 1)
        rows: dict[str, Any] = {}
        given = make(jnp.bfloat16)
        length = (
            slots if n == 1 else PROMPT + 385
        )  # XLA reads the whole window; of drawing, this one
        calls = {"XLA": lambda q, a, c, s, w=length: _plain(q, a, c, s, index, w)}
        for block, warps in VARIANTS:
            calls[f"kernel, {block} slots, {warps} warps"] = (
                lambda q, a, c, s, block=block, warps=warps: gpu_attention.decode_attention(
                    q, a, c, jnp.int32(index), s, block=block, warps=warps
                )
            )
        for name, call in calls.items():
            rows[name] = _measure(call, given, want[0], read, setting.bandwidth)
            yield {f"{n} pictures, {index} slots": rows}


PROMPT = 32


def _random(rows: tuple[int, ...], K: int, G: int, H: int, slots: int) -> Any:
    import jax
    import jax.numpy as jnp

    from janus_jax.models.attention import rotary

    def make(dtype):
        a, b, c = jax.random.split(jax.random.key(0), 3)
        draw = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16).astype(dtype)
        qkv = draw(a, *rows, K, G + 2, H)
        layer = {"k": draw(b, *rows, K, slots, H), "v": draw(c, *rows, K, slots, H)}
        starts = jnp.full(rows, 3, jnp.int32)
        return qkv, rotary(jnp.full(rows, 300), H, 10000.0), layer, starts

    return make


def _plain(qkv: Any, angles: Any, layer: Any, starts: Any, index: int, length: int) -> Any:
    """As `inference.decoder` without the kernel; reads `length` slots."""
    import jax.numpy as jnp

    from janus_jax.inference import kv_cache
    from janus_jax.models.attention import apply_rotary

    angles = tuple(x[..., None, :] for x in angles)
    qkv = qkv[..., None, :, :, :]
    turned = apply_rotary(qkv[..., :-1, :], *angles)
    layer = kv_cache.append(layer, turned[..., -1, :], qkv[..., -1, :], index)
    slot = jnp.arange(length)
    seen = (slot >= starts[..., None]) & (slot <= index)
    cut = {name: x[..., :length, :] for name, x in layer.items()}
    out = kv_cache.attend(turned[..., :-1, :], cut, seen[..., None, :])
    return out[..., 0, :, :, :], layer


def _measure(
    call: Any, given: Any, want: Any, read: int, bandwidth: float | None
) -> dict[str, Any]:
    import jax

    qkv, angles, layer, starts = given
    once = np.asarray(jax.jit(call)(qkv, angles, layer, starts)[0], np.float32)
    want = np.asarray(want, np.float32)

    @jax.jit
    def many(qkv, layer):
        def step(carry, _):
            layer, qkv = carry
            out, layer = call(qkv, angles, layer, starts)
            # What comes next depends on it, so that nothing is left out.
            return (layer, qkv.at[..., 0, :].add(0.01 * out[..., 0, :])), None

        return jax.lax.scan(step, (layer, qkv), length=REPEATED)[0]

    seconds = best(lambda: many(qkv, layer), 5) / REPEATED
    row = {
        "us": seconds * 1e6,
        "error": float(np.sqrt(((once - want) ** 2).mean() / (want**2).mean())),
    }
    return row | ({"of_bandwidth": read / seconds / bandwidth} if bandwidth else {})
