"""A batch of conversations on the host: token ids of a turn in, token ids of the answers out.

What was said stays in the KV cache: a turn computes its own tokens only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.sampling.batching import bucket, left_pad, padded_size
from janus_jax.sampling.logits import Knobs, Mode
from janus_jax.sampling.text_engine import BLOCK, TextEngine
from janus_jax.sampling.weights import Weights

ROOM = 64  # slots are given in multiples of this


class Dialogue:
    """Rows that take turns together, each with its own text, pictures and length.

    Args:
      engine: compiled functions.
      weights: from `weights.pack`.
      rows: B.
      knobs, mode: see `make_knobs`.
      pad_id: fills the left of shorter prompts.
      eos_id: token that ends an answer.

    Attributes:
      said: everything so far, a list of ids a row; image slots hold the image id.
    """

    def __init__(
        self,
        engine: TextEngine,
        weights: Weights,
        rows: int,
        knobs: Knobs,
        mode: Mode,
        pad_id: int,
        eos_id: int,
    ):
        self._engine, self._weights = engine, weights
        self._knobs, self._mode = knobs, mode
        self._pad_id, self._eos_id = pad_id, eos_id
        self.said: list[list[int]] = [[] for _ in range(rows)]
        self._pending: list[list[int]] = [[] for _ in range(rows)]  # said, but not in the cache
        self._state = None
        self._index = 0  # slots written

    def slots(self, ids: Sequence[list[int]], limits: Sequence[int]) -> int:
        """Slots of the cache that `turn` fills if all answers are as long as they may be."""
        longest = max(
            len(pending) + len(new) for pending, new in zip(self._pending, ids, strict=True)
        )
        return self._index + longest + max(limits)

    def turn(
        self,
        ids: Sequence[list[int]],
        pixels: Sequence[Sequence[np.ndarray]],
        limits: Sequence[int],
        keys: jax.Array,
    ) -> Iterator[np.ndarray]:
        """Adds a turn to every row and yields the answers as they grow.

        An answer that nobody listens to any more ends where it is, with end-of-sentence, as in training.

        Args:
          ids: the new tokens of each row, with the image id at the slots of its pictures.
          pixels: the pictures of each row, uint8 [H, W, 3]; one array that stands in several rows is
            computed once.
          limits: most tokens of each answer, >= 1.
          keys: [B] random keys.

        Yields:
          int32 [B, n] new tokens; from the first end-of-sentence or the limit on they mean nothing.
        """
        rows = [[*pending, *new] for pending, new in zip(self._pending, ids, strict=True)]
        tokens, mask = left_pad(rows, len(rows), self._pad_id)
        T = tokens.shape[1]
        features, pictures = self._see(pixels)
        most = jnp.asarray(limits, jnp.int32)
        self._make_room(T + BLOCK)
        self._state, answer = self._engine.prefill(
            self._weights,
            self._state,
            tokens,
            mask,
            features,
            pictures,
            most,
            keys,
            self._knobs,
            mode=self._mode,
        )
        self._index += T
        drawn = np.asarray(answer.last)[:, None]
        try:
            yield drawn
            while not np.asarray(answer.done).all():
                self._make_room(BLOCK)
                self._state, answer, new = self._engine.block(
                    self._weights,
                    self._state,
                    answer,
                    most,
                    keys,
                    self._knobs,
                    mode=self._mode,
                )
                self._index += BLOCK
                new = np.asarray(new)
                drawn = np.concatenate([drawn, new], axis=1)
                yield new
        finally:
            fed = drawn.shape[1] - 1
            for row, (new, limit) in enumerate(zip(ids, limits, strict=True)):
                answered = [*self.cut(drawn[row], limit), self._eos_id]
                self._pending[row] = answered[fed:]
                self.said[row] += [*new, *answered]

    def cut(self, tokens: np.ndarray, limit: int) -> list[int]:
        """The tokens of an answer [n] before its end-of-sentence and its limit."""
        tokens = tokens[:limit].tolist()
        return tokens[: tokens.index(self._eos_id)] if self._eos_id in tokens else tokens

    def _see(self, pixels: Sequence[Sequence[np.ndarray]]) -> tuple[jax.Array | None, np.ndarray]:
        """Features of the distinct pictures, and the number of each row's pictures among them."""
        most = max(map(len, pixels), default=0)
        numbers = np.zeros((len(pixels), most), np.int32)
        if not most:
            return None, numbers
        distinct: dict[int, int] = {}
        pictures = []
        for row, shown in enumerate(pixels):
            for i, picture in enumerate(shown):
                if id(picture) not in distinct:
                    distinct[id(picture)] = len(pictures)
                    pictures.append(picture)
                numbers[row, i] = distinct[id(picture)]
        count = padded_size(len(pictures), 1 << 30)
        pictures += [pictures[-1]] * (count - len(pictures))
        return self._engine.features(self._weights, np.stack(pictures)), numbers

    def _make_room(self, needed: int) -> None:
        """At least `needed` free slots."""
        length = bucket(self._index + needed, ROOM)
        if self._state is None:
            self._state = self._engine.empty(len(self.said), length)
        elif length > self._state.valid.shape[1]:
            self._state = self._engine.grow(self._state, length=length)
