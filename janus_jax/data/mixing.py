"""Reading several sources in turns: what a source cannot give is left out and takes no share of the mixture.

Grain mixes either before it is known what can be used, which costs a task its share, or with weights rounded
to hundredths of the smallest. Here a turn goes on in its source until a record can be used, so that any
beginning has the ratio. A position is how many turns there were, and a tally for each source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import grain

from janus_jax.data.examples import Rejected
from janus_jax.data.interleave import Turns, taken
from janus_jax.data.reading import (
    Encode,
    Features,
    Found,
    InThreads,
    Part,
    Reader,
    Readers,
    WorkerProcesses,
    worker_died,
)
from janus_jax.data.rejects import Ledger, Rejection, Tally


class MixedIterDataset(grain.IterDataset):
    """Encoded examples, by turns of groups, and within each group of its sources.

    It ends where a group has nothing left; without `Part.epochs` never.

    Args:
      groups: of sources, with what each has of all, above 0; so are the weights.
      encode: examples -> arrays.
      stream: (index, count): each source is shared out over the streams, not the mixture, whose order repeats.
      threads: that read; 0 reads when asked.
      ahead: records that are read ahead where there are threads or workers.
      ledger: that rejected records are reported to.
      earlier: number of turns of an earlier version's mixture -> how many records each source had given.
      workers: processes that read instead of threads.
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
        workers: WorkerProcesses | None = None,
    ):
        super().__init__()
        turns = Turns([share for share, _ in groups], [[p.weight for p in g] for _, g in groups])
        parts = [part for _, group in groups for part in group]
        ledger = Ledger() if ledger is None else ledger
        self._settings = (turns, parts, encode, stream, threads, ahead, ledger, earlier, workers)

    def __iter__(self) -> grain.DatasetIterator:
        return _Mixed(*self._settings)


class _Mixed(grain.DatasetIterator):
    """A position is the number of turns, and a tally for each source."""

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
        workers: WorkerProcesses | None,
    ):
        super().__init__()
        self._turns, self._parts = turns, parts
        self._ledger, self._earlier = ledger, earlier
        self._stream, self._ahead = stream[0], ahead
        self._records = [part.records(stream) for part in parts]
        self._limited = [i for i, part in enumerate(parts) if part.epochs is not None]
        self._readers = [Reader(part, encode, stream) for part in parts]
        self._background: Readers | None = None
        if workers is not None:
            self._background = workers.of_stream(parts, encode, stream)
        elif threads:
            self._background = InThreads(self._readers, threads)
        self._go_to(0, [Tally() for _ in parts])

    def _go_to(self, turn: int, tallies: list[Tally]) -> None:
        self._turn, self._tallies = turn, tallies
        self._in_a_row = [0] * len(tallies)
        for part, tally in zip(self._parts, tallies, strict=True):
            self._ledger.put(part.label, self._stream, tally)
        # Up to which turn records were asked for, and those that are being read.
        self._planned = turn
        self._reading: list[deque[Future[Found]]] = [deque() for _ in tallies]
        self._asked = [tally.seen for tally in tallies]

    def __next__(self) -> Features:
        self._read_ahead()
        while True:
            source = self._turns(self._turn, self._used_up())
            if source is None:
                raise StopIteration
            found = self._use_one(source)
            if found is not None:
                self._turn += 1
                return found

    def _used_up(self) -> frozenset[int]:
        """Sources whose epochs are over. Their turns are those of others of the group."""
        return frozenset(i for i in self._limited if self._tallies[i].seen >= self._records[i])

    def _use_one(self, source: int) -> Features | None:
        """The arrays of the next record of a source that can be used; None if its epochs are over."""
        tally = self._tallies[source]
        while tally.seen < self._records[source]:
            index, found = self._read(source)
            if not isinstance(found, Rejected):
                tally.used += 1
                tally.shortened += found.shortened
                self._in_a_row[source] = 0
                return found.features
            tally.rejected[found.reason] += 1
            self._in_a_row[source] += 1
            self._report(source, index, found)
        return None

    def _report(self, source: int, index: int, found: Rejected) -> None:
        part = self._parts[source]
        describe = getattr(part.examples, "describe", lambda i: f"record {i}")
        rejection = Rejection(part.label, index, describe(index), found.reason, found.detail)
        self._ledger.reject(rejection, len(part.examples), self._in_a_row[source])

    def _read_ahead(self) -> None:
        """Asks for what the next turns need; what they turn out to need beside it is asked for then."""
        if self._background is None:
            return
        used_up = self._used_up()
        self._planned = max(self._planned, self._turn)
        while self._planned < self._turn + self._ahead:
            source = self._turns(self._planned, used_up)
            if source is None:
                return
            self._planned += 1
            self._ask(source)

    def _ask(self, source: int) -> None:
        position = self._asked[source]
        if position < self._records[source]:
            self._asked[source] += 1
            self._reading[source].append(self._background(source, position))

    def _read(self, source: int) -> Found:
        if self._background is None:
            return self._readers[source](self._tallies[source].seen)
        if not self._reading[source]:
            self._ask(source)
        try:
            index, found = self._reading[source].popleft().result()
        except BrokenProcessPool as error:
            raise worker_died() from error
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
        if self._background is not None:
            self._background.close()
        super().close()


def hundredths(weights: Sequence[float]) -> Callable[[int], list[int]]:
    """How many records each source of a mixture by Grain had given after so many: `MixedIterDataset.earlier`."""
    scale = 100 / min(weights)
    rounded = [int(w * scale) for w in weights]
    return lambda count: taken(count, rounded)
