"""Records in their order, made by threads, while the device encodes the pictures before them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from janus_jax.data import Rejected
from janus_jax.data_tools.preparation.image_codes import PictureCodes
from janus_jax.data_tools.preparation.records import Made, Pixels

_IN_FLIGHT = 2  # batches that the device has been given, beside the one that is read
_AHEAD = 4  # records that are made ahead, for each thread


def in_order(
    make: Callable[[int], Made], indices: Iterable[int], threads: int, ahead: int = 0
) -> Generator[tuple[int, Made]]:
    """(index, what was made of it), in the order of the indices.

    Args:
      make: may be called by several threads; what it raises is raised here.
      indices: of records.
      threads: that make them.
      ahead: records that are made ahead, beside some for each thread.
    """
    pool = ThreadPoolExecutor(threads, "preparing")
    waiting: deque[tuple[int, Future]] = deque()
    try:
        for index in indices:
            waiting.append((index, pool.submit(make, index)))
            if len(waiting) > ahead + _AHEAD * threads:
                index, future = waiting.popleft()
                yield index, future.result()
        while waiting:
            index, future = waiting.popleft()
            yield index, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def with_codes(
    made: Generator[tuple[int, Made]], encode: PictureCodes, is_last: Callable[[int], bool]
) -> Generator[tuple[int, bytes | Rejected]]:
    """The same with the codes of the pictures.

    Args:
      made: from `in_order`.
      encode: pictures -> codes.
      is_last: whether an index is the last one of its shard. No batch has pictures of two shards, so that
        a shard is the same whatever was made before it.
    """
    on_device: deque[tuple[list[tuple[int, Made]], Any]] = deque()
    group: list[tuple[int, Made]] = []
    pixels: list[np.ndarray] = []  # of the group
    with contextlib.closing(made):
        for index, one in made:
            group.append((index, one))
            if isinstance(one, Pixels):
                pixels.append(one.pixels)
            if len(pixels) == encode.batch or is_last(index):
                on_device.append((group, encode(pixels) if pixels else None))
                group, pixels = [], []
            if len(on_device) > _IN_FLIGHT:
                yield from _records(*on_device.popleft())
        while on_device:
            yield from _records(*on_device.popleft())


def _records(group: list[tuple[int, Made]], codes: Any) -> Iterator[tuple[int, bytes | Rejected]]:
    rows = iter(() if codes is None else np.asarray(codes))
    for index, one in group:
        yield index, one.record(next(rows)) if isinstance(one, Pixels) else one
