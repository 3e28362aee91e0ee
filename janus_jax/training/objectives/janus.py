"""The loss of the assembled model on packed rows: cross-entropy on text and on image codes.

Janus (arXiv 2410.13848), equation 1: plain cross-entropy, no weights between tasks. Text is predicted by
the language head, image codes by the image head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from janus_jax.batch import TASK_TEXT, TASK_UND
from janus_jax.models import JanusModel, Params
from janus_jax.training.objectives.base import Batch, Metrics, Objective


class JanusObjective(Objective):
    """`janus_loss`. Options: `reduction`, "token" by default."""

    def loss(self, model, params, batch, phase):
        reduction = self.options.get("reduction", "token")
        loss, metrics = janus_loss(model, params, batch, reduction)
        return loss, (metrics, {})

    def weight(self, model, batch):
        text, codes, pictures = _weights(model, batch)
        if self.options.get("reduction", "token") == "token":
            return text + codes
        sequences = batch["target_weights"] / _targets_per_sequence(batch)
        return jnp.sum(sequences) + pictures

    def metric_weights(self, model, batch):
        tasks, weights = batch["target_tasks"], batch["target_weights"]
        return {
            "loss_und": jnp.sum(weights * (tasks == TASK_UND)),
            "loss_text": jnp.sum(weights * (tasks == TASK_TEXT)),
            "loss_gen": _weights(model, batch)[1],
        }


def _weights(model: JanusModel, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many text targets, codes and pictures of a batch count."""
    pictures = jnp.sum(batch["gen_weights"])
    return jnp.sum(batch["target_weights"]), pictures * model.config.vq.num_codes, pictures


def janus_loss(
    model: JanusModel, params: Params, batch: Batch, reduction: str = "token"
) -> tuple[jax.Array, Metrics]:
    """Loss of one packed batch (see `janus_jax.batch` for its arrays).

    Where the batch has pictures and not their codes, the image tokenizer runs here, without a gradient: it is
    frozen in every stage that uses this loss.

    Args:
      reduction: "token": mean over all supervised tokens (equation 1). "sequence": mean over sequences
        of each one's mean, so that a one-word answer counts as much as a picture.

    Returns:
      (loss, metrics): float32 scalars `loss`, `loss_und`, `loss_text`, `loss_gen` (each task's token
      mean, 0 where the batch has none) and `tokens` (positions in use).
    """
    log_probs = model.apply({"params": params}, batch, method="target_log_probs")
    text_ce, image_ce = (-x for x in log_probs)  # [B, M], [B, G, N]

    tasks, weights = batch["target_tasks"], batch["target_weights"]
    und, text = weights * (tasks == TASK_UND), weights * (tasks == TASK_TEXT)
    gen = jnp.broadcast_to(batch["gen_weights"][..., None], image_ce.shape)
    if reduction == "token":
        scale_text, scale_gen = weights, gen
    else:
        scale_text = weights / _targets_per_sequence(batch)
        scale_gen = gen / max(image_ce.shape[-1], 1)
    total = jnp.sum(text_ce * scale_text) + jnp.sum(image_ce * scale_gen)
    loss = total / _or_one(jnp.sum(scale_text) + jnp.sum(scale_gen))
    mean = lambda ce, w: jnp.sum(ce * w) / _or_one(jnp.sum(w))
    return loss, {
        "loss": loss,
        "loss_und": mean(text_ce, und),
        "loss_text": mean(text_ce, text),
        "loss_gen": mean(image_ce, gen),
        "tokens": jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32),
    }


def _or_one(weight: jax.Array) -> jax.Array:
    """A divisor: the sum of weights, which may be below 1, but not 0."""
    return jnp.where(weight > 0, weight, 1.0)


def _targets_per_sequence(batch: Batch) -> jax.Array:
    """float32 [B, M]: for each text target, how many text targets its sequence has (at least 1)."""
    segments = jnp.take_along_axis(batch["segment_ids"], batch["target_positions"], axis=1)
    same = segments[:, :, None] == segments[:, None, :]
    return jnp.maximum(jnp.sum(same * (batch["target_weights"] > 0)[:, None, :], axis=-1), 1.0)
