"""A batch of conversations on the host: token ids of a turn in, token ids of the answers out.

What was said stays in the KV cache: a turn computes its own tokens, and what was said without being computed.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference.batching import bucket, left_pad, padded_size
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.logits import SamplingParams, StaticSampling
from janus_jax.inference.text_engine import BLOCK, TextEngine
from janus_jax.parallel import to_host
from janus_jax.processing import image_positions

ROOM = 64  # slots are given in multiples of this
TEXT = -1  # source of a token that shows no picture


class Dialogue:
    """Rows that take turns together, each with its own text, pictures and length.

    Args:
      engine: compiled functions.
      weights: from `weights.fuse_params`.
      rows: B.
      knobs, mode: see `make_sampling_params`.
      pad_id: fills the left of shorter prompts.
      eos_id: token that ends an answer.

    Attributes:
      said: everything so far, a list of ids a row; image slots hold the image id. An answer is there once
        it has ended.
    """

    def __init__(
        self,
        engine: TextEngine,
        weights: Weights,
        rows: int,
        knobs: SamplingParams,
        mode: StaticSampling,
        pad_id: int,
        eos_id: int,
    ):
        self._engine, self._weights = engine, weights
        self._knobs, self._mode = knobs, mode
        self._pad_id, self._eos_id = pad_id, eos_id
        self.said: list[list[int]] = [[] for _ in range(rows)]
        # What feeds each token of `said`: patch p of picture n is n * P + p. The host keeps the pictures, so
        # that whatever is not in the cache can be computed later, or again.
        self._sources: list[list[int]] = [[] for _ in range(rows)]
        self._pictures: list[np.ndarray] = []
        self._numbers: dict[int, int] = {}
        self._state = None
        self._fed = [0] * rows  # tokens of `said` that are in the cache
        self._index = 0  # slots written
        self._answering = lambda: None  # the answer that is being given, if somebody still has it

    def slots(self, ids: Sequence[list[int]], limits: Sequence[int]) -> int:
        """Slots of the cache that `turn` fills if all answers are as long as they may be."""
        longest = max(
            len(said) - fed + len(new)
            for said, fed, new in zip(self.said, self._fed, ids, strict=True)
        )
        return self._index + longest + max(limits)

    def stop(self) -> None:
        """Ends the answer that is being given, if any, where it is."""
        answering = self._answering()
        if answering is not None:
            answering.close()

    def add(self, ids: Sequence[list[int]], pixels: Sequence[Sequence[np.ndarray]]) -> None:
        """Says something in every row. It is computed with the next turn.

        Args:
          ids: the new tokens of each row, with the image id at the slots of its pictures.
          pixels: the pictures of each row, uint8 [H, W, 3]; one array that stands in several rows is
            computed once.

        Raises:
          UserError: a row does not have exactly the slots of its own pictures.
        """
        self.stop()
        P = self._engine.patches
        slots = [image_positions(new, self._engine.image_id) for new in ids]
        for at, shown in zip(slots, pixels, strict=True):
            if len(at) != P * len(shown):
                raise UserError(
                    f"a prompt has {len(at)} image slots, but its {len(shown)} picture(s) take {P} each"
                )
        for row, (new, at, shown) in enumerate(zip(ids, slots, pixels, strict=True)):
            sources = np.full(len(new), TEXT)
            sources[at] = [self._number(s) * P + patch for s in shown for patch in range(P)]
            self.said[row] += new
            self._sources[row] += sources.tolist()

    def turn(
        self,
        ids: Sequence[list[int]],
        pixels: Sequence[Sequence[np.ndarray]],
        limits: Sequence[int],
        keys: jax.Array,
    ) -> Iterator[np.ndarray]:
        """Adds a turn to every row and yields the answers as they grow.

        The turn is said at once, and computed as it is iterated. An answer ends where it is, with
        end-of-sentence, as in training, once nobody holds it any more, it is closed, or more is said; what it
        raises, too, ends it.

        Args:
          ids, pixels: see `add`.
          limits: most tokens of each answer, >= 1.
          keys: [B] random keys.

        Yields:
          int32 [B, n] new tokens; from the first end-of-sentence or the limit on they mean nothing.

        Raises:
          UserError: see `add`.
        """
        self.add(ids, pixels)
        answering = started(self._answer(limits, keys))
        self._answering = weakref.ref(answering)
        return answering

    def _answer(
        self, limits: Sequence[int], keys: jax.Array
    ) -> Generator[np.ndarray | None, None, None]:
        drawn = np.zeros((len(limits), 0), np.int32)
        complete = True  # the cache holds what `drawn` says
        try:
            yield None
            complete = False
            rows = [said[fed:] for said, fed in zip(self.said, self._fed, strict=True)]
            tokens, mask = left_pad(rows, len(rows), self._pad_id)
            T = tokens.shape[1]
            features, sources = self._see()
            most = jnp.asarray(limits, jnp.int32)
            self._make_room(T + BLOCK)
            self._state, answer = self._engine.prefill(
                self._weights,
                self._state,
                tokens,
                mask,
                features,
                sources,
                most,
                keys,
                self._knobs,
                mode=self._mode,
            )
            self._index += T
            self._fed = list(map(len, self.said))
            drawn = to_host(answer.last)[:, None]
            complete = True
            yield drawn
            while not to_host(answer.done).all():
                complete = False
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
                new = to_host(new)
                drawn = np.concatenate([drawn, new], axis=1)
                complete = True
                yield new
        finally:
            self._end(drawn, limits, complete)

    def _end(self, drawn: np.ndarray, limits: Sequence[int], complete: bool) -> None:
        """Says the answers as far as they are `drawn` [B, n]; all but the last token is in the cache."""
        for row, limit in enumerate(limits):
            answered = [*self.cut(drawn[row], limit), self._eos_id]
            self._fed[row] += min(len(answered), max(drawn.shape[1] - 1, 0))
            self.said[row] += answered
            self._sources[row] += [TEXT] * len(answered)
        if not complete:  # interrupted: nobody knows what the cache holds
            self._state, self._index, self._fed = None, 0, [0] * len(self.said)

    def cut(self, tokens: np.ndarray, limit: int) -> list[int]:
        """The tokens of an answer [n] before its end-of-sentence and its limit."""
        tokens = tokens[:limit].tolist()
        return tokens[: tokens.index(self._eos_id)] if self._eos_id in tokens else tokens

    def _number(self, picture: np.ndarray) -> int:
        """Number of a picture among all that were shown."""
        if id(picture) not in self._numbers:
            self._numbers[id(picture)] = len(self._pictures)
            self._pictures.append(picture)
        return self._numbers[id(picture)]

    def _see(self) -> tuple[jax.Array | None, np.ndarray | None]:
        """Features of the distinct pictures of all tokens that are not in the cache, and which of them feeds
        which token (see `TextEngine`)."""
        rows = [sources[fed:] for sources, fed in zip(self._sources, self._fed, strict=True)]
        sources, _ = left_pad(rows, len(rows), TEXT)
        P = self._engine.patches
        numbers = np.unique(sources[sources != TEXT] // P)
        if not len(numbers):
            return None, None
        count = padded_size(len(numbers), 1 << 30)
        numbers = np.pad(numbers, (0, count - len(numbers)), mode="edge")
        features = self._engine.features(
            self._weights, np.stack([self._pictures[n] for n in numbers])
        )
        local = np.searchsorted(numbers, sources // P) * P + sources % P
        return features, np.where(sources == TEXT, TEXT, local).astype(np.int32)

    def _make_room(self, needed: int) -> None:
        """At least `needed` free slots."""
        length = bucket(self._index + needed, ROOM)
        if self._state is None:
            self._state = self._engine.empty(len(self.said), length)
        elif length > self._state.valid.shape[1]:
            self._state = self._engine.grow(self._state, length=length)


def started(generator: Generator) -> Generator:
    """The generator behind its first `yield`: from there on, to close or to drop it runs its `finally`."""
    next(generator)
    return generator
