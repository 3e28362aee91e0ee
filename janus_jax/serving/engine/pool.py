"""Rows that are computed together, as the host knows them: who is in which place, and how far.

Each has a row of `SlotEngine`'s pool, which changes: once others have left, those at the end move up, as all rows
before them would be computed for nothing. The number says nothing: the same tokens come in every row, alone and
beside others.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from janus_jax.inference.logits import SamplingParams
from janus_jax.inference.programs import Call, execute
from janus_jax.inference.slots import FILTERED, GREEDY, PLAIN, Rows, SlotEngine, stacked
from janus_jax.parallel import to_host

TURN = 0.3  # seconds of a block at most, about: so long a job that is cancelled keeps its place
_SHORT = 512  # slots: to read fewer saves less than the weights cost, and each length is a program to compile
_FIRST = 8  # steps of the first block, before it is known how long one takes


class Start(NamedTuple):
    """How a row draws.

    Attributes:
      ids: of its prompt.
      seed, prompt, number: see `slots.Rows`.
      sampling: of this row.
      filtered: whether that has top-k or top-p.
      limit: most tokens that it draws.
    """

    ids: list[int]
    seed: int
    prompt: int
    number: int
    sampling: SamplingParams
    filtered: bool
    limit: int


_NOBODY = Start([0], 0, 0, 0, SamplingParams(1.0, 0.0, 1, 1.0), False, 1)


@dataclasses.dataclass
class _Place:
    """Who is in a place: how it draws, the token that comes next, its row of the pool, and how many were drawn."""

    start: Start
    last: int
    row: int = 0
    drawn: int = 0

    @property
    def filled(self) -> int:
        return len(self.start.ids) - 1 + self.drawn

    @property
    def left(self) -> int:
        return self.start.limit - self.drawn

    @property
    def mode(self) -> int:
        if self.start.sampling.temperature == 0:
            return GREEDY
        return FILTERED if self.start.filtered else PLAIN


class Pool:
    """Places of one `SlotEngine`.

    Args:
      engine: compiled functions.
      weights: from `fused_params.fuse_params`.
      sizes: numbers of rows that programs are compiled for; the last one is how many places there are.
      remembered: prompts whose keys and values are kept, so that further rows of them start at once.

    Attributes:
      places: how many there are.
      lengths: numbers of filled slots that programs are compiled for.
    """

    def __init__(self, engine: SlotEngine, weights: Any, sizes: Sequence[int], remembered: int = 0):
        self._engine, self._weights, self._sizes = engine, weights, tuple(sizes)
        self.places = self._sizes[-1]
        self.lengths = [engine.slots]
        while not engine.reads_filled and self.lengths[0] > _SHORT:
            self.lengths.insert(0, -(-self.lengths[0] // 128) * 64)
        self._taken: dict[int, _Place] = {}
        self._cache: Any = None
        self._prompts: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self._remembered = remembered
        self._seconds: dict[Hashable, float] = {}  # of a step, by program

    @property
    def intact(self) -> bool:
        """Whether its rows are still there: not if a program has failed that had the cache."""
        return self._cache is not None or not self._taken

    def allocate(self) -> None:
        """Takes the memory, unless it has it."""
        if self._cache is None:
            self._cache = execute(self._engine.empty, rows=self.places)

    def reset(self) -> None:
        """Forgets all rows."""
        self._taken.clear()
        self._cache = None

    def start(self, place: int, start: Start, prefill: Callable[[Call], Any]) -> None:
        """Puts a row into a free place.

        Args:
          place: its number.
          start: of the row.
          prefill: computes the keys and values of its prompt; not called if they are remembered.
        """
        key = tuple(start.ids)
        prompt = self._prompts.pop(key, None)
        if prompt is None:
            prompt = jax.block_until_ready(prefill(execute))
        if self._remembered:
            self._prompts[key] = prompt
            if len(self._prompts) > self._remembered:
                self._prompts.popitem(last=False)
        self.allocate()
        cache, self._cache = self._cache, None
        row = self._free_row()
        self._cache = execute(self._engine.insert, cache, prompt, np.int32(row))
        self._taken[place] = _Place(start, start.ids[-1], row)

    def stop(self, place: int) -> None:
        """Frees a place."""
        self._taken.pop(place, None)

    def advance(self, most: int | None = None) -> Mapping[int, np.ndarray]:
        """A block: the new tokens int32 [n] of each place, n at most `most`, and at most what it may draw."""
        rows = next(size for size in self._sizes if size >= len(self._taken))
        self._move_up(rows)
        length = max(place.filled for place in self._taken.values())
        length = next(one for one in self.lengths if one >= length)
        program = rows, length
        left = max(place.left for place in self._taken.values())
        steps = min(left, self._engine.steps, self._affordable(program), most or left)
        by_row = {place.row: place for place in self._taken.values()}
        now = _rows([by_row.get(row) for row in range(rows)])
        began = time.monotonic()
        cache, self._cache = self._cache, None
        shape = dict(rows=rows, length=length)
        block = (self._engine.block, self._weights, cache, now, np.int32(steps))
        self._cache, drawn = execute(*block, **shape)
        drawn = to_host(drawn)[:, :steps]
        self._seconds[program] = (time.monotonic() - began) / steps
        found = {}
        for number, place in self._taken.items():
            new = drawn[place.row, : place.left]
            place.drawn += len(new)
            place.last = int(new[-1])
            found[number] = new
        return found

    def _free_row(self) -> int:
        taken = {place.row for place in self._taken.values()}
        return next(row for row in range(self.places) if row not in taken)

    def _move_up(self, rows: int) -> None:
        """Moves whoever is not among the first `rows` of the pool there."""
        for place in self._taken.values():
            if place.row >= rows:
                row = self._free_row()
                cache, self._cache = self._cache, None
                move = np.int32(place.row), np.int32(row)
                self._cache = execute(self._engine.move, cache, *move)
                place.row = row

    def _affordable(self, program: Hashable) -> int:
        """Steps that take about a turn."""
        seconds = self._seconds.get(program)
        return _FIRST if seconds is None else max(1, int(TURN / max(seconds, 1e-6)))

    def list_programs(self, call: Call, prompts: Sequence[Any]) -> None:
        """Gives `call` all programs but those of prompts.

        Args:
          call: a `ProgramList`.
          prompts: the shapes of keys and values that there can be.
        """
        engine = self._engine
        pool = with_sharding(call(engine.empty, rows=self.places), engine.pool_sharding)
        for prompt in prompts:
            prompt = with_sharding(prompt, engine.prompt_sharding)
            call(engine.insert, pool, prompt, np.int32(0))
        if len(self._sizes) > 1:
            call(engine.move, pool, np.int32(0), np.int32(0))
        for rows in self._sizes:
            for length in self.lengths:
                now, shape = _rows([None] * rows), dict(rows=rows, length=length)
                call(engine.block, self._weights, pool, now, np.int32(1), **shape)


def with_sharding(tree: Any, sharding: Any) -> Any:
    """The shapes of `tree`, as arrays that lie so."""
    if sharding is None:
        return tree
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _rows(places: Sequence[_Place | None]) -> Rows:
    """Host arrays; nobody is in an empty place, which is computed, too."""
    rows = [place or _Place(_NOBODY, 0) for place in places]
    column = lambda of, kind: np.asarray([of(place) for place in rows], kind)
    ints = [
        column(of, np.int32) for of in (lambda p: p.filled, lambda p: p.last, lambda p: p.drawn)
    ]
    keys = np.asarray([p.start[1:4] for p in rows], np.uint32).T
    sampling = stacked([p.start.sampling for p in rows])
    return Rows(*ints, *keys, sampling, np.int32(max(p.mode for p in rows)))
