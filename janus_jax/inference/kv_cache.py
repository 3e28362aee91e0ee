"""The KV cache of sampling: one {"k", "v"} a layer, [..., K, S, H], in the compute dtype or int8.

The axes before S may be merged into one (`flat`); `append` and `attend` take either.

Slots come before the head size and after the heads, so that attention reads each head's keys in one
piece. A cache is grown by padding between loops: inside of one, everything that is there is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

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


def length(cache: Cache) -> int:
    """S, the number of slots."""
    return cache[0]["k"].shape[-2]


def grow(cache: Cache, target_length: int) -> Cache:
    """The same cache with `target_length` slots."""
    extra = target_length - length(cache)
    if extra < 0:
        raise ValueError(f"a cache of {length(cache)} slots cannot shrink to {target_length}")

    def pad(name: str, x: jax.Array) -> jax.Array:
        axis = x.ndim - (1 if name.endswith("_scale") else 2)
        return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

    if extra == 0:
        return cache
    return tuple({name: pad(name, x) for name, x in layer.items()} for layer in cache)


def bytes_per_slot(config: DecoderConfig, dtype: jnp.dtype | str) -> int:
    """Bytes of one row's keys and values in one slot, all layers together."""
    per_head = config.head_dim * jnp.dtype(dtype).itemsize
    if jnp.dtype(dtype) == jnp.int8:
        per_head += 4
    return 2 * config.layers * config.kv_heads * per_head


def flat(cache: Cache) -> Cache:
    """What a loop on one device should carry: in float32, rows and key heads as one axis, [N, S, H].

    XLA's CPU backend, for which caches are in float32, merges them for its products anyway, but as a
    reshape of what was just written, for which it copies the whole cache several times a step. In other
    dtypes the axes stay: compiled for a TPU, a flat int8 cache needs a third more memory. On a mesh they
    must stay, since rows and heads are cut.
    """
    if cache[0]["k"].dtype != jnp.float32:
        return cache
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[-2:]), cache)


def append(layer: LayerCache, k: jax.Array, v: jax.Array, index: jax.Array | int) -> LayerCache:
    """Writes keys and values [..., T, K, H] into the slots from `index` on; the cache may be flat."""
    out = dict(layer)
    for name, new in (("k", k), ("v", v)):
        new, old = jnp.swapaxes(new, -3, -2), layer[name]
        if old.dtype == jnp.int8:
            new, scale = _quantize(new)
            start = (0,) * (scale.ndim - 1) + (index,)
            out[f"{name}_scale"] = jax.lax.dynamic_update_slice(
                layer[f"{name}_scale"], scale, start
            )
        new = new.reshape(*old.shape[:-2], *new.shape[-2:]).astype(old.dtype)
        out[name] = jax.lax.dynamic_update_slice(old, new, (0,) * (old.ndim - 2) + (index, 0))
    return out


def attend(q: jax.Array, layer: LayerCache, mask: jax.Array) -> jax.Array:
    """Attention over the cache; softmax in float32.

    Args:
      q: [..., T, K, G, H], G queries for each key head.
      layer: its cache, which may be flat.
      mask: bool [..., T, S], True = attend; a row without any True gets the mean of all values.

    Returns:
      [..., T, K, G, H] in the dtype of q.
    """
    return attend_parts(q, ((layer, mask),))


def attend_parts(q: jax.Array, parts: Sequence[tuple[LayerCache, jax.Array]]) -> jax.Array:
    """As `attend`, over caches of equal rows that lie in several arrays, each with its mask."""
    stored = parts[0][0]["k"].dtype
    dtype = q.dtype if stored == jnp.int8 else stored
    return jax.lax.platform_dependent(
        q,
        parts,
        cpu=partial(_attend, dtype=jnp.float32),  # lacks some products in bfloat16
        default=partial(_attend, dtype=dtype),
    )


def _attend(
    q: jax.Array, parts: Sequence[tuple[LayerCache, jax.Array]], dtype: jnp.dtype
) -> jax.Array:
    matmul = partial(jnp.einsum, preferred_element_type=jnp.float32)
    T, K, G, H = q.shape[-4:]
    rows = parts[0][0]["k"].shape[:-2]  # as the cache has them
    queries = rearrange(q, "... t k g h -> ... k (g t) h").reshape(*rows, G * T, H)

    def score(layer: LayerCache, mask: jax.Array) -> jax.Array:
        scores = matmul("...qh,...sh->...qs", queries.astype(dtype), layer["k"].astype(dtype))
        scores = scores * H**-0.5
        if "k_scale" in layer:
            scores = scores * layer["k_scale"][..., None, :]
        split = scores.reshape(*q.shape[:-4], K, G, T, scores.shape[-1])
        return jnp.where(mask[..., None, None, :, :], split, jnp.finfo(jnp.float32).min)

    def read(layer: LayerCache, weights: jax.Array) -> jax.Array:
        weights = weights.reshape(*rows, G * T, weights.shape[-1])
        if "v_scale" in layer:
            weights = weights * layer["v_scale"][..., None, :]
        return matmul("...qs,...sh->...qh", weights.astype(dtype), layer["v"].astype(dtype))

    scores = [score(layer, mask) for layer, mask in parts]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    ends = np.cumsum([part.shape[-1] for part in scores])[:-1]
    split = jnp.split(weights, ends, axis=-1)
    out, *others = [read(layer, w) for (layer, _), w in zip(parts, split, strict=True)]
    for other in others:
        out = out + other
    out = out.reshape(*q.shape[:-4], K, G * T, H)
    return rearrange(out, "... k (g t) h -> ... t k g h", g=G).astype(q.dtype)


def _quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., H] -> int8 [..., H] and float32 scale [...], absmax over the head."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-12) / 127
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale
