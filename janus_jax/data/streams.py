"""Batches that do not depend on how many processes read them.

The rows of a step come from a fixed number of streams, each a pipeline of its own over every S-th record of every
source: of a batch of B rows, stream i makes rows i * B / S to (i + 1) * B / S. A process opens the streams that
its rows come from, and no others, so the batch of all processes together is the same for any number of them,
and so is a position, which is one of each stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

Batch = dict[str, np.ndarray]


def stream_batches(
    make: Callable[..., grain.IterDataset],
    streams: int,
    batch_size: int,
    rows: Sequence[int],
    threads: int = 1,
) -> grain.IterDataset:
    """The batches of one process.

    Args:
      make: called as `make(batch_size=rows, stream=(index, count), threads=threads)`, of one stream; both
        functions of `data.mixture` are such.
      streams: S, which must divide `batch_size`.
      batch_size: B, rows of a step, over all processes.
      rows: those of this process, ascending.
      threads: that read, shared out among the streams.

    Returns:
      An IterDataset of batches of these rows, in their order. Its position is {"streams": {index: position}}.
    """
    size, rows = batch_size // streams, np.asarray(rows)
    needed = streams_of(rows, streams, batch_size)
    # With fewer threads than streams, each advances whole streams; else they read within them, too.
    each, more = divmod(threads, len(needed)) if threads >= len(needed) else (0, 0)
    parts = {
        index: make(batch_size=size, stream=(index, streams), threads=each + (nth < more))
        for nth, index in enumerate(needed)
    }
    made = np.concatenate([np.arange(size) + index * size for index in needed])
    keep = None if np.array_equal(made, rows) else np.searchsorted(made, rows)
    return _JoinedIterDataset(parts, keep, min(threads, len(needed)))


def streams_of(rows: Sequence[int], streams: int, batch_size: int) -> list[int]:
    """The streams that some rows of a batch come from."""
    return [int(i) for i in np.unique(np.asarray(rows) // (batch_size // streams))]


class _JoinedIterDataset(grain.IterDataset):
    def __init__(
        self, parts: Mapping[int, grain.IterDataset], keep: np.ndarray | None, workers: int
    ):
        super().__init__(list(parts.values()))
        self._indices, self._keep, self._workers = list(parts), keep, workers

    def __iter__(self) -> grain.DatasetIterator:
        parts = {i: iter(part) for i, part in zip(self._indices, self._parents, strict=True)}
        return _Joined(parts, self._keep, self._workers)


class _Joined(grain.DatasetIterator):
    """A batch of each stream, one after the other in one batch."""

    def __init__(
        self, parts: Mapping[int, grain.DatasetIterator], keep: np.ndarray | None, workers: int
    ):
        super().__init__(list(parts.values()))
        self._parts, self._keep = parts, keep
        self._pool = ThreadPoolExecutor(workers, "streams") if workers > 1 else None

    def __next__(self) -> Batch:
        if self._pool:
            made = [self._pool.submit(next, part) for part in self._parts.values()]
            found = [future.result() for future in made]
        else:
            found = [next(part) for part in self._parts.values()]
        batch = found[0]
        if len(found) > 1:
            batch = {name: np.concatenate([part[name] for part in found]) for name in batch}
        return batch if self._keep is None else {n: a[self._keep] for n, a in batch.items()}

    def get_state(self) -> dict[str, Any]:
        return {"streams": {str(i): part.get_state() for i, part in self._parts.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        for index, part in self._parts.items():
            part.set_state(state["streams"][str(index)])

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        super().close()
