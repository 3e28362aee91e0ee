"""Records that are kept from training, to see by their loss what a model makes of data that it was not taught."""

from __future__ import annotations

import numpy as np

from janus_jax.data.examples import Example, Rejected, Source

MOST = 200  # of a source: more would only take longer
_AT_ONCE = 1 << 20


def held_out_indices(length: int, share: float) -> np.ndarray:
    """The records of a source that are held out: int64 [n], ascending.

    Those whose index has the smallest hash, the same ones for every source of this length: a picture that
    several sources have, in files of the same order, is held out of all of them. At least one, at most `MOST`,
    and at least one is left to train on.

    Args:
      length: number of records.
      share: that is wanted; 0 holds out nothing.
    """
    count = min(max(round(share * length), 1), MOST, length - 1) if share else 0
    if count <= 0:
        return np.zeros(0, np.int64)
    chosen = np.zeros(0, np.int64)
    for start in range(0, length, _AT_ONCE):
        chosen = np.concatenate([chosen, np.arange(start, min(start + _AT_ONCE, length))])
        if len(chosen) > count:
            chosen = chosen[np.argpartition(_hashed(chosen), count)[:count]]
    return np.sort(chosen)


class WithoutHeldOut:
    """A source without what is held out of it; in the same order."""

    def __init__(self, source: Source, share: float):
        self._source = source
        self._held = held_out_indices(len(source), share)
        # Of each one, how many others come before it: from here on indices are so many smaller.
        self._shifts = self._held - np.arange(len(self._held))

    def __len__(self) -> int:
        return len(self._source) - len(self._held)

    def __getitem__(self, index: int) -> Example | Rejected:
        return self._source[self._original(index)]

    def describe(self, index: int) -> str:
        return _described(self._source, self._original(index))

    @property
    def blocks(self) -> np.ndarray | None:
        """See `formats.FileSource.blocks`."""
        blocks = getattr(self._source, "blocks", None)
        if blocks is None:
            return None
        starts = np.unique(blocks - np.searchsorted(self._held, blocks))
        return starts[starts < len(self)]

    def _original(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int(index) + int(np.searchsorted(self._shifts, index, side="right"))


class HeldOut:
    """What is held out of a source."""

    def __init__(self, source: Source, share: float):
        self._source = source
        self._held = held_out_indices(len(source), share)

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Example | Rejected:
        return self._source[int(self._held[index])]

    def describe(self, index: int) -> str:
        return _described(self._source, int(self._held[index]))


def _described(source: Source, index: int) -> str:
    return getattr(source, "describe", lambda i: f"record {i}")(index)


def _hashed(index: np.ndarray) -> np.ndarray:
    """uint64, as good as random: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
