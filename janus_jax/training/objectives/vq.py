"""Stage 0: the image tokenizer, with reconstruction, codebook and commitment loss.

Loss of VQ-VAE (van den Oord et al. 2017) with the l2-normalised codes of LlamaGen (Sun et al. 2024). A
codebook that starts from random numbers collapses to a few codes, so training has three phases: a plain
auto-encoder ("warmup"); then the codebook starts from k-means of the encoder's outputs and learns, and dead
codes are reset now and then ("learn"); at last duplicates are merged, and the rest gets used to a codebook that
is fixed ("fixed").
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from janus_jax.errors import UserError
from janus_jax.models import JanusModel, Params
from janus_jax.pixels import to_float
from janus_jax.training.objectives import codebook as book
from janus_jax.training.objectives.base import Batch, Metrics, Objective

_RECENT = 8  # encoder outputs that are kept for each code


class VQObjective(Objective):
    """`vq_loss`, and the upkeep of the codebook.

    Options: `commitment`; `warmup` and `fixed_from`, the steps at which the second and third phase begin;
    `revive_every`, steps between resets of dead codes; `revive_below`, uses of a code per batch below which it
    is dead; `redundant_above` and `merge_above`, cosines above which two codes are duplicates, when codes are
    reset and when they are merged.

    The extra state is "usage" float32 [codes], the average uses of a code per batch, and "recent" float32
    [8 * codes, C], the last encoder outputs.
    """

    def __init__(self, options, pad_id=0):
        super().__init__(options, pad_id)
        self._change_codebook = jax.jit(
            self._changed_codebook, donate_argnums=0, static_argnames="change"
        )

    def init(self, trainable):
        try:
            codebook = _codebook(trainable)
        except KeyError:
            raise UserError("the objective vq also needs vq/quantize/embedding to train") from None
        norm = jnp.maximum(jnp.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
        return {
            "usage": jnp.zeros(codebook.shape[0], jnp.float32),
            # Until there are encoder outputs, the fresh codes themselves: a code must not become zero.
            "recent": jnp.tile(codebook / norm, (_RECENT, 1)).astype(jnp.float32),
        }

    def loss(self, model, params, batch, phase):
        return vq_loss(model, params, batch, phase != "warmup", self.options["commitment"])

    def after_update(self, before, after, phase):
        # Not by its gradient alone: momentum would pull merged codes apart again.
        return _with_codebook(after, _codebook(before)) if phase == "fixed" else after

    def update_extra(self, extra, aux, phase):
        recent = jnp.concatenate([extra["recent"], aux["z"]])[-len(extra["recent"]) :]
        if phase == "warmup":
            return extra | {"recent": recent}, {}
        usage = book.update_usage(extra["usage"], aux["codes"])
        used = jnp.mean((usage > 0.05).astype(jnp.float32))
        return extra | {"recent": recent, "usage": usage}, {"codes_used": used}

    def before_step(self, state, done):
        warmup, fixed = self.options["warmup"], self.options["fixed_from"]
        if done == warmup:
            state = self._change_codebook(state, change="init")
        if done == fixed:
            state = self._change_codebook(state, change="merge")
        elif warmup < done < fixed and (done - warmup) % self.options["revive_every"] == 0:
            state = self._change_codebook(state, change="reset")
        return state

    def phase(self, done):
        if done < self.options["warmup"]:
            return "warmup"
        return "learn" if done < self.options["fixed_from"] else "fixed"

    def phase_starts(self):
        starts = (self.options.get("warmup"), self.options.get("fixed_from"))
        return tuple(s + 1 for s in starts if isinstance(s, int))

    def _changed_codebook(self, state, change: str):
        threshold = self.options.get("revive_below", 0.05)
        key = jax.random.fold_in(jax.random.key(0), state.step)
        codebook = _codebook(state.trainable)
        usage, recent = state.extra["usage"], state.extra["recent"]
        if change == "init":
            codebook = book.kmeans_init(recent, codebook.shape[0], key)
            usage = jnp.full(codebook.shape[0], 10.0 * threshold)
        elif change == "reset":
            redundant = self.options.get("redundant_above", 0.98)
            codebook, usage, _ = book.reset_dead_codes(
                codebook, usage, recent, key, threshold, redundant
            )
        else:
            redundant = self.options.get("merge_above", 0.985)
            codebook = book.merge_duplicates(codebook, usage, redundant)
        return state.replace(
            trainable=_with_codebook(state.trainable, codebook),
            ema=_with_codebook(state.ema, codebook) if state.ema else {},
            extra={"usage": usage, "recent": recent},
        )


def _codebook(params: Params) -> jax.Array:
    return params["vq"]["quantize"]["embedding"]


def _with_codebook(params: Params, codebook: jax.Array) -> Params:
    return params | {"vq": params["vq"] | {"quantize": {"embedding": codebook}}}


def vq_loss(
    model: JanusModel, params: Params, batch: Batch, quantize: bool, commitment: float
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
