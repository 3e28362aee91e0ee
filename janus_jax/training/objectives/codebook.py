"""Keeping a codebook in use: k-means init, dead-code reset, merging of duplicates."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def kmeans_init(z: jax.Array, size: int, key: jax.Array, iterations: int = 10) -> jax.Array:
    """Spherical k-means of encoder outputs `z` [M, C] (l2-normalised): a codebook [size, C]."""
    codebook = z[jax.random.permutation(key, z.shape[0])[:size]]

    def step(codebook, _):
        nearest = jnp.argmax(z @ codebook.T, axis=-1)
        sums = jax.ops.segment_sum(z, nearest, size)
        norm = jnp.linalg.norm(sums, axis=-1, keepdims=True)
        return jnp.where(norm > 1e-6, sums / jnp.maximum(norm, 1e-6), codebook), None

    return jax.lax.scan(step, codebook, None, length=iterations)[0]


def reset_dead_codes(
    codebook: jax.Array,
    usage: jax.Array,
    z: jax.Array,
    key: jax.Array,
    threshold: float,
    redundant: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moves dead codes onto encoder outputs that no code fits well.

    A code is dead if its average use fell below `threshold`, or if a code used more is so close to it that
    the two mean the same. Such duplicates crowd where pictures are flat: which of them a flat patch gets is
    chance, and the language model would have to learn that chance.

    Args:
      codebook: [size, C]; usage: running average of uses per batch, float32 [size]; z: [M, C],
        l2-normalised.
      redundant: cosine above which two codes are duplicates.

    Returns:
      (codebook, usage, moved): usage of moved codes is reset so that they have time to be used.
    """
    unit = codebook / jnp.maximum(jnp.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
    order = jnp.arange(len(usage))
    more = usage[None] > usage[:, None]
    more |= (usage[None] == usage[:, None]) & (order[None] < order[:, None])
    dead = (usage < threshold) | jnp.any((unit @ unit.T > redundant) & more, axis=-1)
    # Where the nearest live code is far, a new one helps most; where it is near, it is a duplicate.
    cosine = jnp.max(jnp.where(dead[None], -1.0, z @ unit.T), axis=-1)
    misfit = jnp.where(cosine > redundant, -jnp.inf, jnp.log(jnp.maximum(1.0 - cosine, 1e-6)))
    chosen = jax.random.categorical(key, misfit, shape=(codebook.shape[0],))
    codebook = jnp.where(dead[:, None], z[chosen].astype(codebook.dtype), codebook)
    return codebook, jnp.where(dead, 10.0 * threshold, usage), jnp.sum(dead)


def merge_duplicates(codebook: jax.Array, usage: jax.Array, redundant: float) -> jax.Array:
    """Gives every code the vector of the most used code that means the same, if there is one.

    Of equal vectors the quantiser takes the first, so a patch that had several codes keeps one. Duplicates
    come back as long as the codebook trains (patches pull codes towards them): this is its last change.

    Args:
      codebook: [size, C]; usage: float32 [size]; redundant: cosine above which two codes are duplicates.
    """
    unit = codebook / jnp.maximum(jnp.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
    near = unit @ unit.T > redundant
    best = jnp.argmax(jnp.where(near, usage[None], -1.0), axis=-1)
    for _ in range(3):  # a duplicate of a duplicate
        best = best[best]
    return codebook[best]


def update_usage(usage: jax.Array, codes: jax.Array, decay: float = 0.99) -> jax.Array:
    """Running average of how often each code is used per batch; codes int32 [M]."""
    counts = jnp.zeros_like(usage).at[codes].add(1.0)
    return decay * usage + (1.0 - decay) * counts
