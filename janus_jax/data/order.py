"""In which order the records of a source are read: position -> index, epoch after epoch, without an end.

A position is reached at once, so an order has no state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import grain
import numpy as np

from janus_jax.data.examples import Source

Order = Callable[[int], int]

# Grain goes through 65536 places until it meets one of the source: with 100 records that takes 0.2 ms, with three
# 5 ms, for every record that is read.
_FEW = 128
# Blocks whose records are mixed with each other: the more, the better the mix, and the more are held in memory.
MIXED_BLOCKS = 4


def order_of(source: Source, seed: int, shuffle: bool = True) -> Order:
    """The order of a source: each epoch has all records once, every epoch in another order.

    Args:
      source: with `blocks`, first indices of what is read in one piece (`FileSource.blocks`), it is read
        piece by piece.
      seed: of the order.
      shuffle: False leaves the records as they are, in every epoch.
    """
    if not shuffle:
        length = len(source)
        return lambda position: position % length
    blocks = getattr(source, "blocks", None)
    if blocks is not None and len(blocks) > 1:
        return BlockOrder(blocks, len(source), seed)
    if len(source) < _FEW:
        return BlockOrder(np.zeros(1, np.int64), len(source), seed)
    records = grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat()
    return records.__getitem__


class BlockOrder:
    """Blocks in random order; those that come together, a few at a time, with their records mixed.

    Args:
      starts: int [blocks], the first index of each, ascending.
      length: number of records.
      seed: of the order.
      together: how many blocks are mixed.
    """

    def __init__(self, starts: np.ndarray, length: int, seed: int, together: int = MIXED_BLOCKS):
        self._starts = np.asarray(starts, np.int64)
        self._sizes = np.diff([*self._starts, length])
        self._length, self._seed, self._together = length, seed, together
        # Streams of one process are near each other, so few are in use at a time.
        self._epoch = functools.lru_cache(2)(self._make_epoch)
        self._group = functools.lru_cache(8)(self._make_group)

    def __call__(self, position: int) -> int:
        epoch, place = divmod(int(position), self._length)
        _, begins = self._epoch(epoch)
        group = int(np.searchsorted(begins, place, side="right")) - 1
        return int(self._group(epoch, group)[place - begins[group]])

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(blocks in their order, place at which each group of them begins)."""
        blocks = self._rng(epoch).permutation(len(self._starts))
        ends = np.cumsum(self._sizes[blocks])
        begins = np.concatenate([[0], ends[self._together - 1 :: self._together]])
        return blocks, begins[begins < self._length]

    def _make_group(self, epoch: int, group: int) -> np.ndarray:
        """The indices of a group, in their order."""
        blocks, _ = self._epoch(epoch)
        chosen = blocks[group * self._together : (group + 1) * self._together]
        indices = [np.arange(self._sizes[b]) + self._starts[b] for b in chosen]
        return self._rng(epoch, group + 1).permutation(np.concatenate(indices))

    def _rng(self, *number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, *number])))
