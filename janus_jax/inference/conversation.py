"""Conversations of several turns about text and pictures, answered piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference import checks
from janus_jax.inference.dialogue import Dialogue, started
from janus_jax.inference.generator import prompt_number
from janus_jax.inference.options import checked_options
from janus_jax.inference.text_stream import TextStream, update_texts
from janus_jax.processing import Processor, load_image, understanding_pixels
from janus_jax.processing.image import ImageLike


class Conversations:
    """Several conversations that take turns together; `Janus.conversations` makes them.

    An answer depends on its own conversation alone, not on those beside it.

    Args:
      dialogue: a row for each.
      processor: prompt layouts and tokenizer.
      image_size: side of understanding inputs in pixels.
      max_position: positions of the model.
      seed: of the draws.
      check: is called with the length of the cache that a turn may need, and raises if there is no memory for
        it.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        processor: Processor,
        image_size: int,
        max_position: int,
        seed: int = 0,
        check: Callable[[int], None] = lambda cache_length: None,
    ):
        self._check = check
        self._dialogue, self._processor = dialogue, processor
        self._image_size, self._max_position = image_size, max_position
        self._key = jax.random.key(seed)

    @property
    def ids(self) -> list[list[int]]:
        """The history of each, as token ids; image positions hold the image id. An answer is there once it has
        ended."""
        return [list(ids) for ids in self._dialogue.history]

    @checked_options
    def ask(
        self,
        messages: Sequence[str],
        images: Sequence[Sequence[ImageLike]] | None = None,
        max_new_tokens: int = 512,
    ) -> Iterator[list[str]]:
        """Sends a message to each and yields the answers as they grow, in pieces that join to the whole.

        The messages are part of the history when `ask` returns, even if the answers are never iterated: these are
        computed as they are iterated. They end where they are, and stay in the history as far as they have come,
        when the iterator is closed or dropped, when an exception ends it, and when the next `ask` or `add`
        begins: an iterator of a turn before that has nothing more to yield.

        Args:
          messages: one for each conversation.
          images: the pictures of each message; they stand before the text, or at its
            `<image_placeholder>`s. No other text of a message has a meaning of its own.
          max_new_tokens: most tokens of an answer.

        Yields:
          One piece for each conversation, "" where there is nothing new.

        Raises:
          UserError: an empty message, an unreadable picture, another number of messages or of picture
            lists than of conversations, no room left in the model's context, or not enough memory. Nothing
            is added then.
        """
        max_new_tokens = checks.whole("max_new_tokens", max_new_tokens, least=1)
        ids, pixels = self._messages(messages, images)
        self._dialogue.stop()
        limits, keys = [], []
        for history, new in zip(self._dialogue.history, ids, strict=True):
            limits.append(min(max_new_tokens, self._remaining_positions(len(history) + len(new))))
            # The draws depend on everything before, not on how it was cut into turns.
            keys.append(prompt_number(history + new))
        self._check(self._dialogue.cache_length(ids, limits))
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        turn = self._dialogue.turn(
            ids, pixels, limits, fold(self._key, jnp.array(keys, jnp.uint32))
        )
        return started(self._pieces(turn, limits))

    @checked_options
    def add(
        self,
        messages: Sequence[str],
        answers: Sequence[str],
        images: Sequence[Sequence[ImageLike]] | None = None,
    ) -> None:
        """Adds a message to each as if it had been answered with `answers`: earlier turns, or examples.

        Args:
          messages, images: as in `ask`.
          answers: one for each conversation.

        Raises:
          UserError: as `ask`, or an empty answer, or another number of answers. Nothing is added then.
        """
        ids, pixels = self._messages(messages, images)
        answers = self._one_for_each("answers", answers)
        ids = [new + self._processor.answer_ids(a) for new, a in zip(ids, answers, strict=True)]
        self._dialogue.stop()
        for history, new in zip(self._dialogue.history, ids, strict=True):
            self._remaining_positions(len(history) + len(new))
        self._dialogue.add(ids, pixels)

    def _messages(
        self, messages: Sequence[str], images: Sequence[Sequence[ImageLike]] | None
    ) -> tuple[list[list[int]], list[list[np.ndarray]]]:
        """Ids and pixels of the messages."""
        messages = self._one_for_each("messages", messages)
        shown = [()] * len(messages) if images is None else self._one_for_each("images", images)
        shown = [checks.pictures("the images of a message", some) for some in shown]
        ids = [
            self._prompt(bool(history), message, len(some))
            for history, message, some in zip(self._dialogue.history, messages, shown, strict=True)
        ]
        size = self._image_size
        return ids, [[understanding_pixels(load_image(i), size) for i in some] for some in shown]

    def _one_for_each(self, name: str, given: Sequence[Any]) -> list[Any]:
        """One of `given` for each conversation."""
        given, rows = checks.listed(name, given), len(self._dialogue.history)
        if len(given) != rows:
            raise UserError(f"{name}: {len(given)} for {rows} conversations")
        return given

    def _remaining_positions(self, tokens: int) -> int:
        """Tokens that an answer may have after so many."""
        room = self._max_position - tokens
        if room < 1:
            raise UserError(
                f"the conversation is too long: {tokens} tokens, the model has room for "
                f"{self._max_position}; start a new one"
            )
        return room

    def _pieces(
        self, turn: Iterator[np.ndarray], limits: list[int]
    ) -> Generator[list[str], None, None]:
        tokenizer = self._processor.tokenizer
        texts = [TextStream(tokenizer) for _ in limits]
        drawn = np.zeros((len(limits), 0), np.int32)
        with closing(turn):  # the rest of an answer that is not iterated is not drawn
            yield [""] * len(limits)
            for new in turn:
                drawn = np.concatenate([drawn, new], axis=1)
                pieces = update_texts(texts, self._dialogue, drawn, limits)
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
        """The history as token ids; image positions hold the image id. An answer is there once it has ended."""
        return self._one.ids[0]

    @checked_options
    def ask(
        self, message: str, images: Sequence[ImageLike] = (), max_new_tokens: int = 512
    ) -> Iterator[str]:
        """Sends a message and yields the answer as it grows, in pieces that join to the whole.

        The message is part of the history when `ask` returns; see `Conversations.ask` for an answer that is not
        iterated to its end.

        Args:
          message: the text.
          images: pictures that stand before the text, or at its `<image_placeholder>`s.
          max_new_tokens: most tokens of the answer.

        Raises:
          UserError: an empty message, an unreadable picture, no room left in the model's context, or not
            enough memory. Nothing is added then.
        """
        return started(_first(self._one.ask([message], [images], max_new_tokens)))

    @checked_options
    def add(self, message: str, answer: str, images: Sequence[ImageLike] = ()) -> None:
        """Adds a message as if it had been answered with `answer`: an earlier turn, or an example.

        Raises:
          UserError: as `ask`, or an empty answer. Nothing is added then.
        """
        self._one.add([message], [answer], [images])


def _first(answers: Iterator[list[str]]) -> Generator[str, None, None]:
    with closing(answers):
        yield ""
        for pieces in answers:
            yield pieces[0]
