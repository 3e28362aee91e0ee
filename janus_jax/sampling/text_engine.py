"""Pictures and questions -> answer tokens: prefill, then a while loop until every row is done.

Source: deepseek-ai/Janus `inference.py` and `MultiModalityCausalLM.prepare_inputs_embeds`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax import models
from janus_jax.sampling.batching import positions_of, prefill_mask, step_mask
from janus_jax.sampling.logits import Knobs, Mode, fold_in, sample


class TextEngine:
    """Compiled answering of one architecture. Compiles once for each shape and `Mode`."""

    def __init__(self, model: models.Janus, image_id: int, eos_id: int):
        self._model = model
        self._image_id = image_id
        self._eos_id = eos_id
        self.answer = jax.jit(self._answer, static_argnames=("max_new_tokens", "mode"))

    def _answer(
        self,
        params: Any,
        pixels: jax.Array,
        ids: jax.Array,
        mask: jax.Array,
        limits: jax.Array,
        keys: jax.Array,
        knobs: Knobs,
        mode: Mode,
        max_new_tokens: int,
    ) -> jax.Array:
        """Generates one answer a row.

        Args:
          params: parameter tree, layers unrolled.
          pixels: uint8 [B, H, W, 3] understanding inputs.
          ids: int32 [B, T] prompts, left-padded, with `image_id` at the image slots.
          mask: bool [B, T], False on the left padding.
          limits: int32 [B] most tokens of each answer, from 1 to `max_new_tokens`.
          keys: [B] random keys.

        Returns:
          int32 [B, max_new_tokens]; from the first EOS or the limit on, everything is EOS.
        """
        model, config = self._model, self._model.config
        apply = partial(model.apply, {"params": params})
        B, T = ids.shape
        length = T + max_new_tokens - 1  # the last token is never fed back
        lengths = mask.sum(axis=-1, dtype=jnp.int32)
        cache = models.init_cache(config, B, length, model.policy.compute)

        def draw(hidden: jax.Array, step: jax.Array, done: jax.Array):
            """Hidden states [B, D] -> tokens [B] and which rows are done after them."""
            logits = apply(hidden, method="text_logits")
            tokens = sample(logits, fold_in(keys, step), knobs, mode)
            tokens = jnp.where(done, self._eos_id, tokens)
            return tokens, done | (tokens == self._eos_id) | (step + 1 >= limits)

        def unfinished(state):
            return ~jnp.all(state[1])

        def next_token(state):
            step, done, answer, last, cache = state
            index = T + step - 1
            hidden, cache = apply(
                apply(last[:, None], method="embed_text"),
                (lengths + step - 1)[:, None],
                step_mask(mask, length, index),
                cache,
                index,
                method="decode",
            )
            tokens, done = draw(hidden[:, 0], step, done)
            return step + 1, done, answer.at[:, step].set(tokens), tokens, cache

        features = apply((pixels.astype(jnp.float32) / 255 - 0.5) / 0.5, method="embed_images")
        embeds = fill_slots(
            apply(ids, method="embed_text"), features, (ids == self._image_id) & mask
        )
        hidden, cache = apply(
            embeds, positions_of(mask), prefill_mask(mask, length), cache, 0, method="decode"
        )
        tokens, done = draw(hidden[:, -1], jnp.int32(0), jnp.zeros(B, bool))
        answer = jnp.full((B, max_new_tokens), self._eos_id, jnp.int32).at[:, 0].set(tokens)
        state = (jnp.int32(1), done, answer, tokens, cache)
        return jax.lax.while_loop(unfinished, next_token, state)[2]


def fill_slots(embeds: jax.Array, features: jax.Array, slots: jax.Array) -> jax.Array:
    """Puts image features at the image slots, in order.

    Args:
      embeds: [B, T, D] text embeddings.
      features: [B, P, D], one for each slot.
      slots: bool [B, T], P True in each row.
    """
    order = jnp.maximum(jnp.cumsum(slots, axis=-1) - 1, 0)
    at_slots = jnp.take_along_axis(features, order[..., None], axis=1)
    return jnp.where(slots[..., None], at_slots.astype(embeds.dtype), embeds)
