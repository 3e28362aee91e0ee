"""The order in which a source is read: shuffled anew in every epoch, any position without those before it."""

from __future__ import annotations

import functools

import grain
import numpy as np

# Grain goes through 65536 places until it meets one of the source: with 100 records that takes 0.2 ms, with three
# 5 ms, for every record that is read.
_FEW = 128


class EndlessOrder:
    """Indices of a source, epoch after epoch; may be read by several threads.

    Args:
      length: of the source.
      seed: of the order.
    """

    def __init__(self, length: int, seed: int):
        self._length, self._seed = length, seed
        self._shuffled = grain.MapDataset.range(length).seed(seed).shuffle().repeat()
        self._epoch = functools.lru_cache(maxsize=16)(self._permutation)

    def __getitem__(self, position: int) -> int:
        if self._length >= _FEW:
            return int(self._shuffled[position])
        epoch, within = divmod(position, self._length)
        return int(self._epoch(epoch)[within])

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._length)
