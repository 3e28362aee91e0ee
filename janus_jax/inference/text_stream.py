"""Tokens of a growing answer -> text in pieces, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus_jax.inference.dialogue import Dialogue
from janus_jax.processing import Tokenizer


class TextStream:
    """The text of one answer while its tokens come.

    Args:
      tokenizer: of the model.
      stop: the answer ends before the first of these that is complete.

    Attributes:
      text: the answer as far as it is certain.
      finished: nothing will follow.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._emitted = ""
        self.text, self.finished = "", False

    def update(self, tokens: list[int], finished: bool) -> str:
        """The next piece, "" if there is none. The pieces join to `text`.

        Args:
          tokens: all tokens of the answer so far.
          finished: none will follow.
        """
        if self.finished:
            return ""
        decoded = self._tokenizer.decode(tokens)
        end = find_stop(decoded, self._stop)
        self.finished = finished or end is not None
        if end is None and not finished:
            end = len(decoded) - _open_stop(decoded, self._stop)
        self.text = decoded[:end].strip()
        # Half a character must wait for its other half, unless the answer ends there.
        whole = self.finished or not self.text.endswith("\ufffd")
        if not (whole and self.text.startswith(self._emitted)):
            return ""
        piece, self._emitted = self.text[len(self._emitted) :], self.text
        return piece


def update_texts(
    texts: list[TextStream], dialogue: Dialogue, drawn: np.ndarray, limits: list[int]
) -> list[str]:
    """The new piece of every answer, of all tokens that are `drawn` [B, n]."""
    pieces = []
    for row, text in enumerate(texts):
        tokens = dialogue.truncate(drawn[row], limits[row])
        finished = len(tokens) < drawn.shape[1] or len(tokens) == limits[row]
        pieces.append(text.update(tokens, finished))
    return pieces


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first; None without any.

    Of several that are complete at the same place the longest counts. So it does not matter in which
    pieces the text has come.
    """
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return min(found)[1] if found else None


def _open_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of a stop string."""
    longest = max((min(len(s) - 1, len(text)) for s in stop), default=0)
    for length in range(longest, 0, -1):
        if any(s.startswith(text[len(text) - length :]) for s in stop if len(s) > length):
            return length
    return 0
