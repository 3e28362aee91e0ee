"""Conversations of several turns about text and pictures, answered piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import UserError
from janus_jax.processing import Processor, load_image, understanding_pixels
from janus_jax.processing.image import ImageLike
from janus_jax.sampling.dialogue import Dialogue


class Conversations:
    """Several conversations that take turns together; `Janus.conversations` makes them.

    An answer depends on its own conversation alone, not on those beside it.

    Args:
      dialogue: a row for each.
      processor: prompt layouts and tokenizer.
      image_size: side of understanding inputs in pixels.
      max_position: positions of the model.
      seed: of the draws.
      check: is called with the slots that a turn may fill, in each conversation, and raises if there is no
        memory for them.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        processor: Processor,
        image_size: int,
        max_position: int,
        seed: int = 0,
        check: Callable[[int], None] = lambda slots: None,
    ):
        self._check = check
        self._dialogue, self._processor = dialogue, processor
        self._image_size, self._max_position = image_size, max_position
        self._key = jax.random.key(seed)

    @property
    def ids(self) -> list[list[int]]:
        """Everything said so far, a list of token ids each; image slots hold the image id."""
        return [list(said) for said in self._dialogue.said]

    def ask(
        self,
        messages: Sequence[str],
        images: Sequence[Sequence[ImageLike]] | None = None,
        max_new_tokens: int = 512,
    ) -> Iterator[list[str]]:
        """Sends a message to each and yields the answers as they grow, in pieces that join to the whole.

        Args:
          messages: one for each conversation.
          images: the pictures of each message; they stand before the text, or at its
            `<image_placeholder>`s.
          max_new_tokens: most tokens of an answer.

        Yields:
          One piece for each conversation, "" where there is nothing new.

        Raises:
          UserError: an empty message, an unreadable picture, another number of messages or of picture
            lists than of conversations, no room left in the model's context, or not enough memory.
        """
        rows = len(self._dialogue.said)
        images = [()] * rows if images is None else images
        for name, given in (("messages", messages), ("images", images)):
            if len(given) != rows:
                raise UserError(f"{name}: {len(given)} for {rows} conversations")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
        ids, limits, keys = [], [], []
        for said, message, shown in zip(self._dialogue.said, messages, images, strict=True):
            new = self._prompt(bool(said), message, len(shown))
            limit = self._max_position - len(said) - len(new)
            if limit < 1:
                raise UserError(
                    f"the conversation is too long: {len(said) + len(new)} tokens, the model has room "
                    f"for {self._max_position}; start a new one"
                )
            ids.append(new)
            limits.append(min(max_new_tokens, limit))
            # The draws depend on everything said before, not on how it was cut into turns.
            keys.append(zlib.crc32(np.asarray(said + new, np.int32).tobytes()))
        self._check(self._dialogue.slots(ids, limits))
        pixels = [
            [understanding_pixels(load_image(i), self._image_size) for i in s] for s in images
        ]
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        turn = self._dialogue.turn(
            ids, pixels, limits, fold(self._key, jnp.array(keys, jnp.uint32))
        )
        return self._pieces(turn, limits)

    def _pieces(self, turn: Iterator[np.ndarray], limits: list[int]) -> Iterator[list[str]]:
        tokenizer = self._processor.tokenizer
        told = [""] * len(limits)
        drawn = np.zeros((len(limits), 0), np.int32)
        with closing(turn):  # the rest of an answer that nobody listens to is not drawn
            for new in turn:
                drawn = np.concatenate([drawn, new], axis=1)
                pieces = []
                for row, limit in enumerate(limits):
                    answer = self._dialogue.cut(drawn[row], limit)
                    text = tokenizer.decode(answer).strip()
                    # Half a character must wait for its other half, unless the answer ends there.
                    whole = len(answer) < drawn.shape[1] or len(answer) == limit
                    grown = text.startswith(told[row]) and (whole or not text.endswith("\ufffd"))
                    pieces.append(text[len(told[row]) :] if grown else "")
                    told[row] += pieces[-1]
                if any(pieces):
                    yield pieces

    def _prompt(self, begun: bool, message: str, images: int) -> list[int]:
        """Ids of a turn, up to and including `<|Assistant|>:`."""
        processor = self._processor
        if begun:
            return processor.next_question_ids(message, images)
        if images:
            return processor.understanding_ids(message, images)
        return processor.text_ids(message)


class Conversation:
    """One conversation; `Janus.conversation` makes it. See `Conversations`."""

    def __init__(self, one: Conversations):
        self._one = one

    @property
    def ids(self) -> list[int]:
        """Everything said so far, as token ids; image slots hold the image id."""
        return self._one.ids[0]

    def ask(
        self, message: str, images: Sequence[ImageLike] = (), max_new_tokens: int = 512
    ) -> Iterator[str]:
        """Sends a message and yields the answer as it grows, in pieces that join to the whole.

        Args:
          message: the text.
          images: pictures that stand before the text, or at its `<image_placeholder>`s.
          max_new_tokens: most tokens of the answer.

        Raises:
          UserError: an empty message, an unreadable picture, no room left in the model's context, or not
            enough memory.
        """
        return (pieces[0] for pieces in self._one.ask([message], [images], max_new_tokens))
