"""The KV cache of sampling: one {"k", "v"} a layer, [..., K, S, H], in the compute dtype or int8.

Slots come before the head size and after the heads, so that attention reads each head's keys in one
piece. A window is grown by padding between loops: inside of one, everything that is there is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from janus_jax.config import DecoderConfig, Policy

LayerCache = dict[str, jax.Array]
Cache = tuple[LayerCache, ...]


def stored_dtype(policy: Policy, int8: bool = False) -> jnp.dtype:
    """What to keep keys and values in: the compute dtype; float32 on a CPU, which computes in it anyway."""
    if int8:
        return jnp.dtype(jnp.int8)
    return jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else policy.compute


def empty(config: DecoderConfig, rows: Sequence[int], length: int, dtype: jnp.dtype | str) -> Cache:
    """A cache of `length` empty slots for rows of any leading shape; "int8" also has scales."""
    shape = (*rows, config.kv_heads, length)

    def layer() -> LayerCache:
        out = {name: jnp.zeros((*shape, config.head_dim), dtype) for name in ("k", "v")}
        if jnp.dtype(dtype) == jnp.int8:
            out |= {f"{name}_scale": jnp.zeros(shape, jnp.float32) for name in ("k", "v")}
        return out

    return tuple(layer() for _ in range(config.layers))


def slots(cache: Cache) -> int:
    """S, the number of slots."""
    return cache[0]["k"].shape[-2]


def grow(cache: Cache, length: int) -> Cache:
    """The same cache with `length` slots."""
    extra = length - slots(cache)
    if extra < 0:
        raise ValueError(f"a cache of {slots(cache)} slots cannot shrink to {length}")

    def pad(name: str, x: jax.Array) -> jax.Array:
        axis = x.ndim - (1 if name.endswith("_scale") else 2)
        return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

    if extra == 0:
        return cache
    return tuple({name: pad(name, x) for name, x in layer.items()} for layer in cache)


def bytes_per_slot(config: DecoderConfig, dtype: jnp.dtype | str) -> int:
    """Bytes of one row's keys and values in one slot, all layers together."""
    each = config.head_dim * jnp.dtype(dtype).itemsize
    if jnp.dtype(dtype) == jnp.int8:
        each += 4
    return 2 * config.layers * config.kv_heads * each


def append(layer: LayerCache, k: jax.Array, v: jax.Array, index: jax.Array | int) -> LayerCache:
    """Writes keys and values [..., T, K, H] into the slots from `index` on."""
    out = dict(layer)
    for name, new in (("k", k), ("v", v)):
        new = jnp.swapaxes(new, -3, -2)
        if layer[name].dtype == jnp.int8:
            new, scale = _quantize(new)
            start = (0,) * (scale.ndim - 1) + (index,)
            out[f"{name}_scale"] = jax.lax.dynamic_update_slice(
                layer[f"{name}_scale"], scale, start
            )
        start = (0,) * (new.ndim - 2) + (index, 0)
        out[name] = jax.lax.dynamic_update_slice(layer[name], new.astype(layer[name].dtype), start)
    return out


def attend(q: jax.Array, layer: LayerCache, mask: jax.Array) -> jax.Array:
    """Attention over the cache; softmax in float32.

    Args:
      q: [..., T, K, G, H], G queries for each key head.
      layer: its cache.
      mask: bool [..., T, S], True = attend; a row without any True gets the mean of all values.

    Returns:
      [..., T, K, G, H] in the dtype of q.
    """
    stored = layer["k"].dtype
    dtype = q.dtype if stored == jnp.int8 else stored
    return jax.lax.platform_dependent(
        q,
        layer,
        mask,
        cpu=partial(_attend, dtype=jnp.float32),  # lacks some products in bfloat16
        default=partial(_attend, dtype=dtype),
    )


def _attend(q: jax.Array, layer: LayerCache, mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("...tkgh,...ksh->...kgts", q.astype(dtype), layer["k"].astype(dtype))
    scores = scores * q.shape[-1] ** -0.5
    if "k_scale" in layer:
        scores = scores * layer["k_scale"][..., None, None, :]
    scores = jnp.where(mask[..., None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if "v_scale" in layer:
        weights = weights * layer["v_scale"][..., None, None, :]
    out = product("...kgts,...ksh->...tkgh", weights.astype(dtype), layer["v"].astype(dtype))
    return out.astype(q.dtype)


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., H] -> int8 [..., H] and float32 scale [...], absmax over the head."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-12) / 127
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale
