"""Reading several sources in turns: what a source cannot give is left out and takes no share of the mixture.

Grain mixes either before it is known what can be used, which costs a task its share, or with weights rounded
to hundredths of the smallest. Here a turn goes on in its source until a record can be used, so that any
beginning has the ratio. A position is how many turns there were, and a tally for each source.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np

from janus_jax.data.examples import Example, Rejected, Source, read_example
from janus_jax.data.interleave import Turns, taken
from janus_jax.data.order import EndlessOrder
from janus_jax.data.rejects import Ledger, Rejection, Tally

Features = dict[str, np.ndarray]


class Encoded(NamedTuple):
    """What an encoder made of an example: its arrays, and whether some of it was cut off to fit a row."""

    features: Features
    shortened: bool = False


Encode = Callable[[Example, np.random.Generator], Encoded | Rejected]


@dataclasses.dataclass(frozen=True)
class Part:
    """A source in a mixture.

    Attributes:
      label: for people.
      examples: the source.
      index: its number in the batches.
      seed: of its order.
      weight: relative to the others of its group.
    """

    label: str
    examples: Source
    index: int
    seed: int
    weight: float


class MixedIterDataset(grain.IterDataset):
    """Endless encoded examples, by turns of groups, and within each group of its sources.

    Args:
      groups: of sources, with what each has of all, above 0; so are the weights.
      encode: examples -> arrays.
      stream: (index, count): each source is shared out over the streams, not the mixture, whose order repeats.
      threads: that read; 0 reads when asked.
      ahead: records that are read ahead where there are threads.
      ledger: that rejected records are reported to.
      earlier: number of turns of an earlier version's mixture -> how many records each source had given.
    """

    def __init__(
        self,
        groups: Sequence[tuple[float, Sequence[Part]]],
        encode: Encode,
        stream: tuple[int, int],
        threads: int,
        ahead: int,
        ledger: Ledger | None,
        earlier: Callable[[int], list[int]],
    ):
        super().__init__()
        turns = Turns([share for share, _ in groups], [[p.weight for p in g] for _, g in groups])
        parts = [part for _, group in groups for part in group]
        ledger = Ledger() if ledger is None else ledger
        self._settings = (turns, parts, encode, stream, threads, ahead, ledger, earlier)

    def __iter__(self) -> grain.DatasetIterator:
        return _Mixed(*self._settings)


class _Reader:
    """The records of a source for one stream, shuffled anew in every epoch."""

    def __init__(self, part: Part, encode: Encode, stream: tuple[int, int]):
        self.part, self._encode, self._stream = part, encode, stream
        self._order = EndlessOrder(len(part.examples), part.seed)

    def __call__(self, position: int) -> tuple[int, Encoded | Rejected]:
        """(index in the source, arrays) of the record at a position in this order."""
        number = position * self._stream[1] + self._stream[0]
        index = self._order[number]
        example = read_example(self.part.examples, index)
        if isinstance(example, Rejected):
            return index, example
        if self.part.index:
            example = dataclasses.replace(example, source=self.part.index)
        # What is left to chance depends on the position in the source alone: not on other sources.
        rng = np.random.Generator(np.random.Philox(key=self.part.seed, counter=number))
        return index, self._encode(example, rng)


class _Mixed(grain.DatasetIterator):
    def __init__(
        self,
        turns: Turns,
        parts: Sequence[Part],
        encode: Encode,
        stream: tuple[int, int],
        threads: int,
        ahead: int,
        ledger: Ledger,
        earlier: Callable[[int], list[int]],
    ):
        super().__init__()
        self._turns, self._ledger, self._earlier = turns, ledger, earlier
        self._stream, self._ahead = stream[0], ahead
        self._readers = [_Reader(part, encode, stream) for part in parts]
        self._pool = ThreadPoolExecutor(threads, "reading") if threads else None
        self._go_to(0, [Tally() for _ in parts])

    def _go_to(self, turn: int, tallies: list[Tally]) -> None:
        self._turn, self._tallies = turn, tallies
        self._in_a_row = [0] * len(tallies)
        for reader, tally in zip(self._readers, tallies, strict=True):
            self._ledger.put(reader.part.label, self._stream, tally)
        # Whose turns were planned, and for each of them a record that is being read.
        self._planned: deque[int] = deque()
        self._reading: list[deque[Future]] = [deque() for _ in tallies]
        self._asked = [tally.seen for tally in tallies]

    def __next__(self) -> Features:
        source = self._whose_turn()
        while True:
            index, found = self._read(source)
            tally = self._tallies[source]
            if not isinstance(found, Rejected):
                tally.used += 1
                tally.shortened += found.shortened
                self._in_a_row[source] = 0
                self._turn += 1
                return found.features
            tally.rejected[found.reason] += 1
            self._in_a_row[source] += 1
            self._report(source, index, found)

    def _report(self, source: int, index: int, found: Rejected) -> None:
        part = self._readers[source].part
        describe = getattr(part.examples, "describe", lambda i: f"record {i}")
        rejection = Rejection(part.label, index, describe(index), found.reason, found.detail)
        self._ledger.reject(rejection, len(part.examples), self._in_a_row[source])

    def _whose_turn(self) -> int:
        if self._pool is None:
            return self._turns(self._turn)
        while len(self._planned) < self._ahead:
            source = self._turns(self._turn + len(self._planned))
            self._planned.append(source)
            self._ask(source)
        return self._planned.popleft()

    def _ask(self, source: int) -> None:
        position, self._asked[source] = self._asked[source], self._asked[source] + 1
        self._reading[source].append(self._pool.submit(self._readers[source], position))

    def _read(self, source: int) -> tuple[int, Encoded | Rejected]:
        if self._pool is None:
            return self._readers[source](self._tallies[source].seen)
        index, found = self._reading[source].popleft().result()
        if isinstance(found, Rejected):
            self._ask(source)  # one more, so that each of its planned turns has a record
        return index, found

    def get_state(self) -> dict[str, Any]:
        return {"turn": self._turn, "sources": [tally.to_state() for tally in self._tallies]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        for reading in self._reading:
            for future in reading:
                future.cancel()
        if "next_index" in state:  # of a version that mixed before it encoded
            turn = state["next_index"]
            self._go_to(turn, [Tally(used=count) for count in self._earlier(turn)])
            return
        self._go_to(state["turn"], [Tally.from_state(source) for source in state["sources"]])

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        super().close()


def hundredths(weights: Sequence[float]) -> Callable[[int], list[int]]:
    """How many records each source of a mixture by Grain had given after so many: `MixedIterDataset.earlier`."""
    scale = 100 / min(weights)
    rounded = [int(w * scale) for w in weights]
    return lambda count: taken(count, rounded)
