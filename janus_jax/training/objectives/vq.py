"""Stage 0: the image tokenizer. Reconstruction + codebook + commitment loss, and care for the codebook.

Loss of VQ-VAE (van den Oord et al. 2017) with the l2-normalised codes of LlamaGen (Sun et al. 2024). A
codebook that starts from random numbers collapses to a few codes, so training starts as a plain
auto-encoder, then places the codes on the encoder's outputs, and later moves codes that nothing uses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from janus_jax.models import JanusModel
from janus_jax.training.losses import Metrics, to_float


def vq_loss(
    model: JanusModel, params: dict, batch: dict[str, jax.Array], quantize: bool, commitment: float
) -> tuple[jax.Array, tuple[Metrics, dict[str, jax.Array]]]:
    """Loss of a batch of pictures, uint8 [B, h, w, 3].

    Args:
      quantize: False trains the plain auto-encoder of the warm-up.
      commitment: weight of the commitment loss (0.25 in LlamaGen).

    Returns:
      (loss, (metrics, aux)); aux holds `z` float32 [B*N, 8], l2-normalised, and `codes` int32 [B*N].
    """
    pixels = to_float(batch["image"])
    out = model.apply({"params": params}, pixels, quantize=quantize, method="vq_forward")
    error = out["reconstruction"].astype(jnp.float32) - pixels
    # L1 next to L2 keeps the edges of sprites sharp; there is no adversarial loss at this size.
    reconstruction = jnp.mean(jnp.square(error)) + 0.2 * jnp.mean(jnp.abs(error))
    loss = reconstruction
    if quantize:
        loss = loss + out["codebook_loss"] + commitment * out["commitment_loss"]
    z = out["z"].astype(jnp.float32).reshape(-1, out["z"].shape[-1])
    z = z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    metrics = {
        "loss": loss,
        "loss_reconstruction": reconstruction,
        "psnr": -10.0 * jnp.log10(jnp.mean(jnp.square(error)) / 4.0),
        "tokens": jnp.float32(z.shape[0]),
    }
    return loss, (metrics, {"z": z, "codes": out["codes"].reshape(-1)})


def place_codes(z: jax.Array, size: int, key: jax.Array, iterations: int = 10) -> jax.Array:
    """Spherical k-means of encoder outputs `z` [M, C] (l2-normalised): a codebook [size, C]."""
    codebook = z[jax.random.permutation(key, z.shape[0])[:size]]

    def step(codebook, _):
        nearest = jnp.argmax(z @ codebook.T, axis=-1)
        sums = jax.ops.segment_sum(z, nearest, size)
        norm = jnp.linalg.norm(sums, axis=-1, keepdims=True)
        return jnp.where(norm > 1e-6, sums / jnp.maximum(norm, 1e-6), codebook), None

    return jax.lax.scan(step, codebook, None, length=iterations)[0]


def revive_codes(
    codebook: jax.Array,
    usage: jax.Array,
    z: jax.Array,
    key: jax.Array,
    threshold: float,
    redundant: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moves codes that do no work onto encoder outputs that no code fits well.

    A code does no work if its average use fell below `threshold`, or if a code used more lies so close to
    it that the two mean the same. Such doubles crowd where pictures are plain: which of them a flat patch
    gets is chance, and the language model would have to learn that chance.

    Args:
      codebook: [size, C]; usage: running average of uses per batch, float32 [size]; z: [M, C],
        l2-normalised.
      redundant: cosine above which two codes are doubles.

    Returns:
      (codebook, usage, moved): usage of moved codes is reset so that they get time to be found.
    """
    unit = codebook / jnp.maximum(jnp.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
    order = jnp.arange(len(usage))
    more = usage[None] > usage[:, None]
    more |= (usage[None] == usage[:, None]) & (order[None] < order[:, None])
    idle = (usage < threshold) | jnp.any((unit @ unit.T > redundant) & more, axis=-1)
    # Where the nearest working code is far, a new one helps most; where it is near, it is a double.
    cosine = jnp.max(jnp.where(idle[None], -1.0, z @ unit.T), axis=-1)
    misfit = jnp.where(cosine > redundant, -jnp.inf, jnp.log(jnp.maximum(1.0 - cosine, 1e-6)))
    chosen = jax.random.categorical(key, misfit, shape=(codebook.shape[0],))
    codebook = jnp.where(idle[:, None], z[chosen].astype(codebook.dtype), codebook)
    return codebook, jnp.where(idle, 10.0 * threshold, usage), jnp.sum(idle)


def merge_doubles(codebook: jax.Array, usage: jax.Array, redundant: float) -> jax.Array:
    """Gives every code the vector of the most used code that means the same, if there is one.

    Of equal vectors the quantiser takes the first, so a patch that had several codes keeps one. Doubles
    come back as long as the codebook trains (patches pull codes towards them): this is its last change.

    Args:
      codebook: [size, C]; usage: float32 [size]; redundant: cosine above which two codes are doubles.
    """
    unit = codebook / jnp.maximum(jnp.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
    near = unit @ unit.T > redundant
    best = jnp.argmax(jnp.where(near, usage[None], -1.0), axis=-1)
    for _ in range(3):  # a double of a double
        best = best[best]
    return codebook[best]


def update_usage(usage: jax.Array, codes: jax.Array, decay: float = 0.99) -> jax.Array:
    """Running average of how often each code is used per batch; codes int32 [M]."""
    counts = jnp.zeros_like(usage).at[codes].add(1.0)
    return decay * usage + (1.0 - decay) * counts
