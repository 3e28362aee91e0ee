"""A batch of conversations on the host: token ids of a turn in, token ids of the answers out.

What was exchanged stays in the KV cache: a turn computes its own tokens, and those before it that are not in the
cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference import programs
from janus_jax.inference.batching import left_pad, padded_size
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.logits import SamplingParams, StaticSampling
from janus_jax.inference.programs import Call
from janus_jax.inference.schedule import BLOCK, UNLIMITED, AnswerSchedule, schedule_answers
from janus_jax.inference.text_engine import Answer, State, TextEngine
from janus_jax.parallel import to_host
from janus_jax.processing import image_positions

TEXT = -1  # source of a token that shows no picture


class Turn(NamedTuple):
    """Arrays of one turn.

    Attributes:
      ids: int32 [B, T], left-padded.
      mask: bool [B, T], False on the left padding.
      pixels: uint8 [U, H, W, 3], the pictures of the turn, or None.
      sources: int32 [B, T] or None, see `TextEngine.prefill`.
      limits: int32 [B], most tokens of each answer.
      keys: [B] random keys.
    """

    ids: Any
    mask: Any
    pixels: Any
    sources: Any
    limits: Any
    keys: Any


class StateHolder:
    """The only reference to a state, so that what is grown or donated does not stay in memory.

    Attributes:
      state: None before the first turn.
    """

    def __init__(self):
        self.state: State | None = None


class Dialogue:
    """Rows that take turns together, each with its own text, pictures and length.

    Args:
      engine: compiled functions.
      weights: from `fused_params.fuse_params`.
      rows: B.
      sampling, static: see `make_sampling_params`.
      pad_id: fills the left of shorter prompts.
      eos_id: token that ends an answer.

    Attributes:
      history: everything so far, a list of ids a row; image positions hold the image id. An answer is there
        once it has ended.
    """

    def __init__(
        self,
        engine: TextEngine,
        weights: Weights,
        rows: int,
        sampling: SamplingParams,
        static: StaticSampling,
        pad_id: int,
        eos_id: int,
    ):
        self._engine, self._weights = engine, weights
        self._sampling, self._static = sampling, static
        self._pad_id, self._eos_id = pad_id, eos_id
        self.history: list[list[int]] = [[] for _ in range(rows)]
        # What feeds each token of `history`: patch p of picture n is n * P + p. The host keeps the pictures, so
        # that whatever is not in the cache can be computed later, or again.
        self._sources: list[list[int]] = [[] for _ in range(rows)]
        self._pictures: list[np.ndarray] = []
        self._numbers: dict[int, int] = {}
        self._cache = StateHolder()
        self._cached = [0] * rows  # tokens of `history` that are in the cache
        self._index = 0  # slots of the cache that are written
        self._answering = lambda: None  # the answer that is being drawn, if somebody still holds it

    def cache_length(self, ids: Sequence[list[int]], limits: Sequence[int]) -> int:
        """Slots of the cache that `turn` fills if all answers are as long as they may be."""
        longest = max(
            len(history) - cached + len(new)
            for history, cached, new in zip(self.history, self._cached, ids, strict=True)
        )
        return self._index + longest + max(limits)

    def stop(self) -> None:
        """Ends the answer that is being drawn, if any, where it is."""
        answering = self._answering()
        if answering is not None:
            answering.close()

    def add(self, ids: Sequence[list[int]], pixels: Sequence[Sequence[np.ndarray]]) -> None:
        """Adds tokens to every row. They are computed with the next turn.

        Args:
          ids: the new tokens of each row, with the image id at the positions of its pictures.
          pixels: the pictures of each row, uint8 [H, W, 3]; one array that stands in several rows is
            computed once.

        Raises:
          UserError: a row does not have exactly the image positions of its own pictures.
        """
        self.stop()
        P = self._engine.patches
        positions = [image_positions(new, self._engine.image_id) for new in ids]
        for at, shown in zip(positions, pixels, strict=True):
            if len(at) != P * len(shown):
                raise UserError(
                    f"a prompt has {len(at)} image slots, but its {len(shown)} picture(s) take {P} each"
                )
        for row, (new, at, shown) in enumerate(zip(ids, positions, pixels, strict=True)):
            sources = np.full(len(new), TEXT)
            sources[at] = [self._number(s) * P + patch for s in shown for patch in range(P)]
            self.history[row] += new
            self._sources[row] += sources.tolist()

    def turn(
        self,
        ids: Sequence[list[int]],
        pixels: Sequence[Sequence[np.ndarray]],
        limits: Sequence[int],
        keys: jax.Array,
    ) -> Iterator[np.ndarray]:
        """Adds a turn to every row and yields the answers as they grow.

        The turn is added at once, and computed as it is iterated. An answer ends where it is, with
        end-of-sentence, as in training, once nothing holds it any more, it is closed, or more is added; what it
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

    def truncate(self, tokens: np.ndarray, limit: int) -> list[int]:
        """The tokens of an answer [n] before its end-of-sentence and its limit."""
        tokens = tokens[:limit].tolist()
        return tokens[: tokens.index(self._eos_id)] if self._eos_id in tokens else tokens

    def _answer(
        self, limits: Sequence[int], keys: jax.Array
    ) -> Generator[np.ndarray | None, None, None]:
        drawn = np.zeros((len(limits), 0), np.int32)
        complete = True  # the cache holds `drawn`
        try:
            yield None
            complete = False
            turn = self._arrange(limits, keys)
            T = turn.ids.shape[1]
            schedule = schedule_answers(
                len(self.history),
                0 if turn.pixels is None else len(turn.pixels),
                T,
                max(limits),
                self._index,
            )
            blocks = answer_turn(
                programs.execute,
                self._engine,
                self._weights,
                schedule,
                self._cache,
                turn,
                self._sampling,
                self._static,
                lambda answer: to_host(answer.done).all(),
            )
            for new in blocks:
                if drawn.shape[1] == 0:
                    self._index += T
                    self._cached = list(map(len, self.history))
                else:
                    self._index += BLOCK
                new = to_host(new).reshape(len(limits), -1)
                drawn = np.concatenate([drawn, new], axis=1)
                complete = True
                yield new
                complete = False
            complete = True
        finally:
            self._end(drawn, limits, complete)

    def _end(self, drawn: np.ndarray, limits: Sequence[int], complete: bool) -> None:
        """Adds the answers as far as they are `drawn` [B, n]; all but the last token is in the cache."""
        for row, limit in enumerate(limits):
            answered = [*self.truncate(drawn[row], limit), self._eos_id]
            self._cached[row] += min(len(answered), max(drawn.shape[1] - 1, 0))
            self.history[row] += answered
            self._sources[row] += [TEXT] * len(answered)
        if not complete:  # interrupted: what the cache holds is not known
            self._cache, self._index, self._cached = StateHolder(), 0, [0] * len(self.history)

    def _number(self, picture: np.ndarray) -> int:
        """Number of a picture among all that were shown."""
        if id(picture) not in self._numbers:
            self._numbers[id(picture)] = len(self._pictures)
            self._pictures.append(picture)
        return self._numbers[id(picture)]

    def _arrange(self, limits: Sequence[int], keys: jax.Array) -> Turn:
        """Everything that is not in the cache."""
        rows = [new[cached:] for new, cached in zip(self.history, self._cached, strict=True)]
        ids, mask = left_pad(rows, len(rows), self._pad_id)
        rows = [new[cached:] for new, cached in zip(self._sources, self._cached, strict=True)]
        sources, _ = left_pad(rows, len(rows), TEXT)
        limits = jnp.asarray(limits, jnp.int32)
        P = self._engine.patches
        numbers = np.unique(sources[sources != TEXT] // P)
        if not len(numbers):
            return Turn(ids, mask, None, None, limits, keys)
        local = np.searchsorted(numbers, sources // P) * P + sources % P
        sources = np.where(sources == TEXT, TEXT, local).astype(np.int32)
        count = padded_size(len(numbers), UNLIMITED)
        numbers = np.pad(numbers, (0, count - len(numbers)), mode="edge")
        pixels = np.stack([self._pictures[n] for n in numbers])
        return Turn(ids, mask, pixels, sources, limits, keys)


def answer_turn(
    call: Call,
    engine: TextEngine,
    weights: Weights,
    schedule: AnswerSchedule,
    cache: StateHolder,
    turn: Turn,
    sampling: SamplingParams,
    static: StaticSampling,
    finished: Callable[[Answer], bool],
) -> Iterator[Any]:
    """The programs of one turn.

    Args:
      call: `programs.execute` or a `ProgramList`.
      engine, weights: as of `Dialogue`.
      schedule: of the turn.
      cache: of the turns before; holds what each step leaves.
      turn: its arrays.
      sampling, static: see `make_sampling_params`.
      finished: whether no row goes on.

    Yields:
      int32 [B], the first tokens, then [B, BLOCK] further ones.
    """
    features = None
    if turn.pixels is not None:
        features = call(engine.features, weights, turn.pixels)
    first, *lengths = schedule.cache_lengths
    if cache.state is None:
        cache.state = call(engine.empty, rows=schedule.rows, length=first)
    _make_room(call, engine, cache, first)
    arrays = (turn.ids, turn.mask, features, turn.sources, turn.limits, turn.keys)
    cache.state, answer = call(
        engine.prefill, weights, cache.state, *arrays, sampling, static=static
    )
    yield answer.last
    for length in lengths:
        if finished(answer):
            return
        _make_room(call, engine, cache, length)
        cache.state, answer, new = call(
            engine.block,
            weights,
            cache.state,
            answer,
            turn.limits,
            turn.keys,
            sampling,
            static=static,
        )
        yield new


def list_answer_programs(
    call: Call,
    engine: TextEngine,
    weights: Weights,
    schedule: AnswerSchedule,
    image_size: int,
    sampling: SamplingParams,
    static: StaticSampling,
) -> None:
    """Gives `call`, a `ProgramList`, the programs of the first turn of a batch of conversations."""
    B, T, U = schedule.rows, schedule.prompt_length, schedule.pictures
    ids, side = np.zeros((B, T), np.int32), image_size
    turn = Turn(
        ids,
        np.ones((B, T), bool),
        np.zeros((U, side, side, 3), np.uint8) if U else None,
        ids if U else None,
        jnp.ones(B, jnp.int32),
        jnp.broadcast_to(jax.random.key(0), (B,)),
    )
    how = (sampling, static, lambda answer: False)
    for _ in answer_turn(call, engine, weights, schedule, StateHolder(), turn, *how):
        pass


def _make_room(call: Call, engine: TextEngine, cache: StateHolder, length: int) -> None:
    """At least `length` slots."""
    if length > cache.state.valid.shape[1]:
        cache.state = call(engine.grow, cache.state, length=length)


def started(generator: Generator) -> Generator:
    """The generator behind its first `yield`: from there on, to close or to drop it runs its `finally`."""
    next(generator)
    return generator
