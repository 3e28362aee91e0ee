"""Reading and encoding records, when asked, in threads or in processes: always the same ones in the same order.

What a reader returns depends on the source, its seed and the position alone, so anyone may make it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, Protocol

import numpy as np

from janus_jax.data.examples import Example, Rejected, Source, read_example
from janus_jax.data.order import order_of
from janus_jax.errors import RunError

Features = dict[str, np.ndarray]


class Encoded(NamedTuple):
    """What an encoder made of an example: its arrays, and whether some of it was cut off to fit a row."""

    features: Features
    shortened: bool = False


Encode = Callable[[Example, np.random.Generator], Encoded | Rejected]
Found = tuple[int, Encoded | Rejected]  # with the index in the source


@dataclasses.dataclass(frozen=True)
class Part:
    """A source in a mixture.

    Attributes:
      label: for people.
      examples: the source.
      index: its number in the batches.
      seed: of its order.
      weight: relative to the others of its group.
      shuffle: see `order.order_of`.
      epochs: how often it is read at most; None for ever.
    """

    label: str
    examples: Source
    index: int
    seed: int
    weight: float
    shuffle: bool = True
    epochs: float | None = None

    def records(self, stream: tuple[int, int]) -> float:
        """How many records of it a stream, (index, count), has in all."""
        if self.epochs is None:
            return float("inf")
        return max(0, -(-(int(self.epochs * len(self.examples)) - stream[0]) // stream[1]))


class Reader:
    """The records of a source for one stream."""

    def __init__(self, part: Part, encode: Encode, stream: tuple[int, int]):
        self._part, self._encode, self._stream = part, encode, stream
        self._order = order_of(part.examples, part.seed, part.shuffle)

    def __call__(self, position: int) -> Found:
        """The record at a position of this stream's order."""
        part = self._part
        number = position * self._stream[1] + self._stream[0]
        index = self._order(number)
        example = read_example(part.examples, index)
        if isinstance(example, Rejected):
            return index, example
        if part.index:
            example = dataclasses.replace(example, source=part.index)
        # What is left to chance depends on the position in the source alone: not on other sources.
        rng = np.random.Generator(np.random.Philox(key=part.seed, counter=number))
        return index, self._encode(example, rng)


class Readers(Protocol):
    """Those of all sources of a stream: starts to read a record, and ends."""

    def __call__(self, source: int, position: int) -> Future[Found]: ...

    def close(self) -> None: ...


class InThreads:
    """Reads in threads of its own."""

    def __init__(self, readers: Sequence[Reader], threads: int):
        self._readers, self._pool = readers, ThreadPoolExecutor(threads, "reading")

    def __call__(self, source: int, position: int) -> Future[Found]:
        return self._pool.submit(self._readers[source], position)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Worker(multiprocessing.context.SpawnProcess):
    """A worker leaves SIGTERM to the parent, so only SIGKILL ends it.

    When one dies, the executor terminates the others. The dead one may hold the lock of their queue, so they would
    hear of nothing else, and be waited for without end.
    """

    def terminate(self) -> None:
        self.kill()


class _WorkerContext(multiprocessing.context.SpawnContext):
    Process = _Worker


class WorkerProcesses:
    """Processes that read and encode for all streams of a mixture, started at the first record.

    They are new interpreters, not forks, which JAX does not survive; each opens the files itself. They end with
    the process that started them, however it ends, and leave signals to it.
    """

    def __init__(self, count: int):
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def of_stream(self, parts: Sequence[Part], encode: Encode, stream: tuple[int, int]) -> Readers:
        """What reads the records of one stream; `parts` and `encode` are the same for all of them."""
        with self._lock:
            if self._pool is None:
                what = pickle.dumps((parts, encode))
                self._pool = ProcessPoolExecutor(self.count, _WorkerContext(), _start, (what,))
        return _OfStream(self._pool, stream)

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
                self._pool = None


@dataclasses.dataclass
class _OfStream:
    pool: ProcessPoolExecutor
    stream: tuple[int, int]

    def __call__(self, source: int, position: int) -> Future[Found]:
        try:
            return self.pool.submit(_read, self.stream, source, position)
        except BrokenProcessPool as error:
            raise worker_died() from error

    def close(self) -> None:
        """The processes are those of other streams, too."""


def worker_died() -> RunError:
    return RunError(
        "a process that reads data has died: it was killed, or memory is full; run the same command again to "
        "continue, with fewer of them (--config.data.workers=N) if there is not enough memory"
    )


# In a worker.
_readers: dict[tuple[int, tuple[int, int]], Reader] = {}
_work: tuple[Sequence[Part], Encode] | None = None


def _start(what: bytes) -> None:
    global _work
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Nothing here computes on a device, and the accelerator is the parent's.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    _work = pickle.loads(what)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _read(stream: tuple[int, int], source: int, position: int) -> Found:
    reader = _readers.get((source, stream))
    if reader is None:
        parts, encode = _work
        reader = _readers[source, stream] = Reader(parts[source], encode, stream)
    return reader(position)
