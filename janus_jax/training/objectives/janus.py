"""The loss of the assembled model on packed rows: cross-entropy on text and on image codes.

Janus (arXiv 2410.13848), equation 1: plain cross-entropy, no weights between tasks. Text is predicted by
the language head, image codes by the image head, and each head runs only at the positions it is needed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from janus_jax.models import JanusModel, Segments
from janus_jax.processing.sequence import TASK_TEXT, TASK_UND, TOKEN_GEN, TOKEN_UND

Metrics = dict[str, jax.Array]
REDUCTIONS = ("token", "sequence")


def to_float(images: jax.Array) -> jax.Array:
    """uint8 pictures to float32 in [-1, 1] (mean and standard deviation 0.5, as the image processor)."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def janus_loss(
    model: JanusModel, params: dict, batch: dict[str, jax.Array], reduction: str = "token"
) -> tuple[jax.Array, Metrics]:
    """Loss of one packed batch (see `data.packing.pack` for its arrays).

    The image tokenizer runs here, under stop-gradient: it is frozen in every stage that uses this loss.

    Args:
      reduction: "token": mean over all supervised tokens (equation 1). "sequence": mean over sequences
        of each one's mean, so that a one-word answer counts as much as a picture.

    Returns:
      (loss, metrics): float32 scalars `loss`, `loss_und`, `loss_text`, `loss_gen` (each task's token
      mean, 0 where the batch has none) and `tokens` (positions in use).
    """
    batch = batch | _picture_codes(model, params, batch)
    hidden = _hidden(model, params, batch)
    apply = lambda method, x: model.apply({"params": params}, x, method=method)

    rows = jnp.arange(hidden.shape[0])
    at_targets = hidden[rows[:, None], batch["target_positions"]]
    text_ce = optax.softmax_cross_entropy_with_integer_labels(
        apply("text_logits", at_targets), batch["target_ids"]
    )  # [B, M]

    codes = batch["codes"]  # [B, G, N]
    image_ce = jnp.zeros(codes.shape)
    if codes.size:
        steps = batch["gen_starts"][..., None] + jnp.arange(codes.shape[-1])
        at_codes = hidden[rows[:, None, None], jnp.minimum(steps, hidden.shape[1] - 1)]
        image_ce = optax.softmax_cross_entropy_with_integer_labels(
            apply("image_logits", at_codes), codes
        )  # [B, G, N]

    tasks, weights = batch["target_tasks"], batch["target_weights"]
    und, text = weights * (tasks == TASK_UND), weights * (tasks == TASK_TEXT)
    gen = jnp.broadcast_to(batch["gen_weights"][..., None], image_ce.shape)
    if reduction == "token":
        scale_text, scale_gen = weights, gen
    else:
        scale_text = weights / _targets_per_sequence(batch)
        scale_gen = gen / max(codes.shape[-1], 1)
    total = jnp.sum(text_ce * scale_text) + jnp.sum(image_ce * scale_gen)
    loss = total / jnp.maximum(jnp.sum(scale_text) + jnp.sum(scale_gen), 1.0)
    mean = lambda ce, w: jnp.sum(ce * w) / jnp.maximum(jnp.sum(w), 1.0)
    return loss, {
        "loss": loss,
        "loss_und": mean(text_ce, und),
        "loss_text": mean(text_ce, text),
        "loss_gen": mean(image_ce, gen),
        "tokens": jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32),
    }


def _picture_codes(model: JanusModel, params: dict, batch: dict) -> dict[str, jax.Array]:
    """Codes int32 [B, G, N] of the pictures to generate."""
    images = batch["gen_images"]
    if not images.size:  # a stage that draws nothing
        return {"codes": jnp.zeros((*images.shape[:2], 0), jnp.int32)}
    flat = rearrange(to_float(images), "B G h w c -> (B G) h w c")
    codes = model.apply({"params": params}, flat, method="encode_codes")
    codes = rearrange(codes, "(B G) N -> B G N", B=images.shape[0])
    return {"codes": jax.lax.stop_gradient(codes)}


def _hidden(model: JanusModel, params: dict, batch: dict) -> jax.Array:
    """Hidden states [B, T, D] after the final norm."""
    apply = lambda method, *x: model.apply({"params": params}, *x, method=method)
    embeds = apply("embed_text", batch["tokens"])  # [B, T, D]
    slots = batch["token_types"]

    if batch["und_images"].size:
        images = rearrange(to_float(batch["und_images"]), "B U h w c -> (B U) h w c")
        features = apply("embed_images", images)
        features = rearrange(features, "(B U) P D -> B (U P) D", B=slots.shape[0])
        embeds = _fill(embeds, slots == TOKEN_UND, features)

    if batch["codes"].size:
        codes = apply("embed_codes", batch["codes"][..., :-1])
        embeds = _fill(embeds, slots == TOKEN_GEN, rearrange(codes, "B G N D -> B (G N) D"))

    segments = Segments(batch["segment_ids"], model.attention)
    hidden, _ = apply("decode", embeds, batch["positions"], segments)
    return hidden


def _fill(embeds: jax.Array, where: jax.Array, values: jax.Array) -> jax.Array:
    """Puts `values` [B, K, D], in order, at the positions [B, T] where `where` holds."""
    index = jnp.clip(jnp.cumsum(where, axis=1) - 1, 0, values.shape[1] - 1)
    chosen = jnp.take_along_axis(values, index[..., None], axis=1)
    return jnp.where(where[..., None], chosen.astype(embeds.dtype), embeds)


def _targets_per_sequence(batch: dict) -> jax.Array:
    """float32 [B, M]: for each text target, how many text targets its sequence has (at least 1)."""
    segments = jnp.take_along_axis(batch["segment_ids"], batch["target_positions"], axis=1)
    same = segments[:, :, None] == segments[:, None, :]
    return jnp.maximum(jnp.sum(same * batch["target_weights"][:, None, :], axis=-1), 1.0)
