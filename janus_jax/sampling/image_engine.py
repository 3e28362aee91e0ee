"""Prompt ids -> image codes under one jit, with classifier-free guidance and a KV cache.

Source: deepseek-ai/Janus `generation_inference.py`. The language head is never computed. The rows
are the B conditional ones, then the B unconditional ones; with guidance 1 the second half is left
out, which gives the same codes at half the cost.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax import models
from janus_jax.sampling.batching import positions_of, prefill_mask, step_mask
from janus_jax.sampling.logits import Knobs, Mode, fold_in, guide, sample

DECODE_CHUNK = 16  # pictures that the VQ decoder handles at once: bounds its activations


class ImageEngine:
    """Compiled image generation of one architecture. Compiles once for each shape and `Mode`.

    `model` must have unrolled layers: a scanned decoder copies its whole cache every token.
    """

    def __init__(self, model: models.Janus, pad_id: int):
        self._model = model
        self._pad_id = pad_id
        self.codes = jax.jit(self._codes, static_argnames="mode")
        self.pixels = jax.jit(self._pixels)

    def _codes(
        self,
        params: Any,
        ids: jax.Array,
        mask: jax.Array,
        keys: jax.Array,
        knobs: Knobs,
        mode: Mode,
    ) -> jax.Array:
        """Generates the codes of one picture a row.

        Args:
          params: parameter tree, layers unrolled.
          ids: int32 [B, T] prompts from BOS to BOI, left-padded.
          mask: bool [B, T], False on the left padding.
          keys: [B] random keys, one a picture.
          knobs, mode: see `make_knobs`.

        Returns:
          int32 [B, num_codes], row-major over the grid.
        """
        model, config = self._model, self._model.config
        apply = partial(model.apply, {"params": params})
        if mode.guided:
            ids = jnp.concatenate([ids, unconditional_rows(ids, mask, self._pad_id)])
            mask = jnp.concatenate([mask, mask])
        (rows, T), steps = ids.shape, config.vq.num_codes
        length = T + steps - 1  # the last code is never fed back
        lengths = mask.sum(axis=-1, dtype=jnp.int32)
        cache = models.init_cache(config, rows, length, model.policy.compute)

        def draw(hidden: jax.Array, step: jax.Array) -> jax.Array:
            """Hidden states [rows, D] -> codes [B]."""
            logits = apply(hidden, method="image_logits")
            if mode.guided:
                logits = guide(*jnp.split(logits, 2), knobs.cfg_weight)
            return sample(logits, fold_in(keys, step), knobs, mode)

        def next_code(carry, step):
            cache, codes = carry
            codes = jnp.concatenate([codes, codes]) if mode.guided else codes
            index = T + step - 1
            hidden, cache = apply(
                apply(codes[:, None], method="embed_codes"),
                (lengths + step - 1)[:, None],
                step_mask(mask, length, index),
                cache,
                index,
                method="decode",
            )
            codes = draw(hidden[:, 0], step)
            return (cache, codes), codes

        hidden, cache = apply(
            apply(ids, method="embed_text"),
            positions_of(mask),
            prefill_mask(mask, length),
            cache,
            0,
            method="decode",
        )
        first = draw(hidden[:, -1], jnp.int32(0))
        _, rest = jax.lax.scan(next_code, (cache, first), jnp.arange(1, steps))
        return jnp.concatenate([first[None], rest]).T

    def _pixels(self, params: Any, codes: jax.Array) -> jax.Array:
        """Codes [B, num_codes] -> uint8 [B, H, W, 3], truncated as in the official script."""

        def decode(codes: jax.Array) -> jax.Array:
            pixels = self._model.apply({"params": params}, codes, method="decode_codes")
            return jnp.clip((pixels.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)

        if codes.shape[0] <= DECODE_CHUNK:
            return decode(codes)
        return jax.lax.map(lambda one: decode(one[None])[0], codes, batch_size=DECODE_CHUNK)


def unconditional_rows(ids: jax.Array, mask: jax.Array, pad_id: int) -> jax.Array:
    """Rows [BOS, pad.., BOI] with the left padding of `ids` [B, T]; the pads are attended to."""
    first = jnp.cumsum(mask, axis=-1) == 1
    last = jnp.arange(ids.shape[1]) == ids.shape[1] - 1
    return jnp.where(mask & ~first & ~last, pad_id, ids)
