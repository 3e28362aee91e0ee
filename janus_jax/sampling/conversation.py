"""A conversation of several turns about text and pictures, answered piece by piece.

What was said stays in the KV cache: a turn computes its own tokens only. Prompts are padded on the right
to a bucketed length; what the padding leaves in the cache is never attended to and soon overwritten.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax import models
from janus_jax.errors import UserError
from janus_jax.processing import Processor, load_image, understanding_pixels
from janus_jax.processing.image import ImageLike
from janus_jax.sampling.batching import round_up
from janus_jax.sampling.logits import Knobs, Mode, make_knobs, sample
from janus_jax.sampling.text_engine import fill_slots

BLOCK = 8  # tokens between two looks at the answer
_FIRST_ROOM = 1024  # slots of a new cache; it doubles when it is full
_PROMPT_BUCKET = 64

_compiled = partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)  # donates the cache


class Conversation:
    """One conversation with one model; `Janus.conversation` makes it.

    Args:
      model: with unrolled layers.
      params: its parameters.
      processor: prompt layouts and tokenizer.
      temperature: 0 is greedy.
      top_p: nucleus; None does not restrict.
      seed: of the draws.
    """

    def __init__(
        self,
        model: models.Janus,
        params: models.Params,
        processor: Processor,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
    ):
        self._model, self._params, self._processor = model, params, processor
        vocab = model.config.decoder.vocab_size
        self._knobs, self._mode = make_knobs(vocab, temperature=temperature, top_p=top_p)
        self._key = jax.random.key(seed)
        self._cache: models.Cache | None = None
        self._said: list[int] = []  # all ids in the cache, in order

    @property
    def ids(self) -> list[int]:
        """Everything said so far, as token ids; image slots hold the image id."""
        return list(self._said)

    def ask(
        self, message: str, images: Sequence[ImageLike] = (), max_new_tokens: int = 512
    ) -> Iterator[str]:
        """Sends a message and yields the answer as it grows, in pieces that join to the whole.

        Args:
          message: the text.
          images: pictures that stand before the text, or at its `<image_placeholder>`s.
          max_new_tokens: most tokens of the answer.

        Raises:
          UserError: an empty message, an unreadable picture, or no room left in the model's context.
        """
        ids = self._prompt(message, len(images))
        limit = self._model.config.decoder.max_position - len(self._said) - len(ids)
        if limit < 1:
            raise UserError(
                f"the conversation is too long: {len(self._said) + len(ids)} tokens, the model has room "
                f"for {self._model.config.decoder.max_position}; start a new one"
            )
        size = self._model.config.siglip.image_size
        pixels = [understanding_pixels(load_image(image), size) for image in images]
        return self._answer(ids, pixels, min(max_new_tokens, limit))

    def _prompt(self, message: str, images: int) -> list[int]:
        """Ids of a turn, up to and including `<|Assistant|>:`."""
        processor = self._processor
        if self._said:
            return processor.next_question_ids(message, images)
        if images:
            return processor.understanding_ids(message, images)
        return processor.text_ids(message)

    def _answer(self, ids: list[int], pixels: list[np.ndarray], limit: int) -> Iterator[str]:
        tokenizer = self._processor.tokenizer
        start, answer, told = len(self._said), [], ""
        static = (self._model, self._mode)
        # The draws depend on everything said before, not on how it was cut into turns.
        key = jax.random.fold_in(self._key, zlib.crc32(np.asarray(self._said + ids).tobytes()))
        padded = round_up(len(ids), _PROMPT_BUCKET)
        self._make_room(start + padded + BLOCK)
        row = np.full((1, padded), tokenizer.pad_id, np.int32)
        row[0, : len(ids)] = ids
        slots = (row == tokenizer.image_id) & (np.arange(padded) < len(ids))
        token, self._cache = _prefill(
            *static,
            self._params,
            self._cache,
            jnp.asarray(row),
            jnp.asarray(np.stack(pixels)) if pixels else None,
            jnp.asarray(slots),
            start,
            len(ids),
            key,
            self._knobs,
        )
        self._said += ids
        tokens = [int(token[0])]
        try:
            while True:
                for one in tokens:
                    if one == tokenizer.eos_id or len(answer) == limit:
                        yield from _rest(tokenizer.decode(answer).strip(), told)
                        return
                    answer.append(one)
                text = tokenizer.decode(answer).strip()
                if not text.endswith("\ufffd"):  # half a character must wait
                    for piece in _rest(text, told):
                        yield piece
                        told = text
                position = (
                    len(self._said) + len(answer) - 1
                )  # of the last token, not in the cache yet
                self._make_room(position + BLOCK)
                block, self._cache = _decode(
                    *static,
                    self._params,
                    self._cache,
                    jnp.asarray(answer[-1:]),
                    position,
                    len(answer),
                    key,
                    self._knobs,
                )
                tokens = np.asarray(block)[:, 0].tolist()
        finally:
            # Also of an answer that nobody listens to any more: it ends with EOS, as in training.
            self._close(answer)

    def _close(self, answer: list[int]) -> None:
        """Puts the answer and its EOS into the history; the cache lacks the last one or two of them."""
        eos = self._processor.tokenizer.eos_id
        ids = [*answer[-1:], eos]
        start = len(self._said) + len(answer) - len(answer[-1:])
        self._make_room(start + _PROMPT_BUCKET)
        row = np.full((1, _PROMPT_BUCKET), eos, np.int32)
        row[0, : len(ids)] = ids
        _, self._cache = _prefill(
            self._model,
            self._mode,
            self._params,
            self._cache,
            jnp.asarray(row),
            None,
            jnp.zeros(row.shape, bool),
            start,
            len(ids),
            self._key,
            self._knobs,
        )
        self._said += [*answer, eos]

    def _make_room(self, needed: int) -> None:
        """A cache of at least `needed` slots, with what the old one holds."""
        have = self._cache[0]["k"].shape[1] if self._cache else 0
        if needed <= have:
            return
        length = max(have, _FIRST_ROOM)
        while length < needed:
            length *= 2
        if self._cache is None:
            self._cache = models.init_cache(
                self._model.config, 1, length, self._model.policy.compute
            )
        else:
            grow = lambda x: jnp.pad(x, ((0, 0), (0, length - have), (0, 0), (0, 0)))
            self._cache = jax.tree.map(grow, self._cache)


def _rest(text: str, told: str) -> Iterator[str]:
    if text.startswith(told) and len(text) > len(told):
        yield text[len(told) :]


@_compiled
def _prefill(
    model: models.Janus,
    mode: Mode,
    params: Any,
    cache: models.Cache,
    ids: jax.Array,
    pixels: jax.Array | None,
    slots: jax.Array,
    start: jax.Array,
    count: jax.Array,
    key: jax.Array,
    knobs: Knobs,
) -> tuple[jax.Array, models.Cache]:
    """Adds `count` of the ids [1, T] to the cache at `start`; returns the next token [1]."""
    apply = partial(model.apply, {"params": params})
    embeds = apply(ids, method="embed_text")
    if pixels is not None:
        features = apply((pixels.astype(jnp.float32) / 255 - 0.5) / 0.5, method="embed_images")
        embeds = fill_slots(embeds, features.reshape(1, -1, features.shape[-1]), slots)
    T, S = ids.shape[1], cache[0]["k"].shape[1]
    positions = start + jnp.arange(T)
    mask = (jnp.arange(S) <= positions[:, None])[None]
    hidden, cache = apply(embeds, positions[None], mask, cache, start, method="decode")
    last = jax.lax.dynamic_index_in_dim(hidden, count - 1, axis=1, keepdims=False)
    logits = apply(last, method="text_logits")
    return sample(logits, jax.random.fold_in(key, 0)[None], knobs, mode), cache


@_compiled
def _decode(
    model: models.Janus,
    mode: Mode,
    params: Any,
    cache: models.Cache,
    token: jax.Array,
    position: jax.Array,
    step: jax.Array,
    key: jax.Array,
    knobs: Knobs,
) -> tuple[jax.Array, models.Cache]:
    """Feeds `token` [1] at `position` and draws the next ones: int32 [BLOCK, 1]."""
    apply = partial(model.apply, {"params": params})
    S = cache[0]["k"].shape[1]

    def next_token(carry, i):
        token, cache = carry
        hidden, cache = apply(
            apply(token[:, None], method="embed_text"),
            (position + i)[None, None],
            (jnp.arange(S) <= position + i)[None, None],
            cache,
            position + i,
            method="decode",
        )
        logits = apply(hidden[:, 0], method="text_logits")
        token = sample(logits, jax.random.fold_in(key, step + i)[None], knobs, mode)
        return (token, cache), token

    (_, cache), tokens = jax.lax.scan(next_token, (token, cache), jnp.arange(BLOCK))
    return tokens, cache
