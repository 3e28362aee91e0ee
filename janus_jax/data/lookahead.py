"""Packing with a choice: each row is filled from the sequences that come next, not in their order.

First-fit leaves 5 to 12 % of a row empty where sequences are a sixth of a row long or more, as pictures are.
Here every row holds the sequence that waits the longest, and of those behind it the ones that fill it best.
So nothing is left out or put off for ever, and the mixture stays what it is: a sequence waits at most
`lookahead` rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np


def choose(sizes: np.ndarray, room: np.ndarray) -> list[int]:
    """Which sequences fill a row best: the first one, and those that make the first field the fullest.

    Every sum that the first field can have is looked at once, with the earliest sequences that make it; of the
    other fields it is only asked whether there is room. (Subset sum by dynamic programming.)

    Args:
      sizes: int [sequences, fields], each no larger than the room.
      room: int [fields].

    Returns:
      Indices, ascending. The first is 0.
    """
    left = room - sizes[0]
    spare = int(left[0])
    reached = np.zeros(spare + 1, bool)
    reached[0] = True
    last = np.zeros(spare + 1, int)  # the sequence that made this sum out of a smaller one
    others = np.zeros((spare + 1, len(room) - 1), int)
    for index in range(1, len(sizes)):
        size = int(sizes[index, 0])
        if not 0 < size <= spare:
            continue
        sums = np.flatnonzero(reached[: spare + 1 - size] & ~reached[size:]) + size
        needed = others[sums - size] + sizes[index, 1:]
        fits = (needed <= left[1:]).all(axis=1)
        sums = sums[fits]
        reached[sums], last[sums], others[sums] = True, index, needed[fits]
        if reached[spare]:
            break
    chosen, total = [], int(np.flatnonzero(reached)[-1])
    while total:
        chosen.append(int(last[total]))
        total -= int(sizes[last[total], 0])
    return [0, *reversed(chosen)]


class LookaheadPackIterDataset(grain.IterDataset):
    """Rows as Grain's packers make them: NAME, NAME_segment_ids and NAME_positions of every feature.

    Args:
      parent: of dicts of arrays.
      lengths: room in a row for each feature.
      counted: features by which a row is filled: the first as full as can be, the others as far as there is
        room. The length of every other feature is that of one of these.
      lookahead: sequences to choose from, at least 1.
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        lengths: Mapping[str, int],
        counted: Sequence[str],
        lookahead: int,
    ):
        super().__init__(parent)
        self._settings = (dict(lengths), tuple(counted), lookahead)

    def __iter__(self) -> grain.DatasetIterator:
        return _Rows(iter(self._parent), *self._settings)


class _Rows(grain.DatasetIterator):
    """A position is where the sequence that waits the longest is read, and which behind it are used."""

    def __init__(
        self,
        parent: grain.DatasetIterator,
        lengths: dict[str, int],
        counted: tuple[str, ...],
        lookahead: int,
    ):
        super().__init__(parent)
        self._lengths, self._counted, self._lookahead = lengths, counted, lookahead
        self._room = np.array([lengths[name] for name in counted])
        self._forget()

    def _forget(self, used: Sequence[int] = ()) -> None:
        # (number, parent's position before it, sequence), the longest waiting first.
        self._waiting: list[tuple[int, Any, dict[str, np.ndarray]]] = []
        self._read = 0
        self._used = set(used)  # numbers that are read again, and in a row already
        self._ended = False

    def __next__(self) -> dict[str, np.ndarray]:
        self._fill()
        if not self._waiting:
            raise StopIteration
        sizes = [[len(sequence[name]) for name in self._counted] for *_, sequence in self._waiting]
        chosen = choose(np.array(sizes), self._room)
        row = _row([self._waiting[i][2] for i in chosen], self._lengths)
        for index in reversed(chosen):
            del self._waiting[index]
        return row

    def get_state(self) -> dict[str, Any]:
        if not self._waiting:
            used = sorted(n - self._read for n in self._used)
            return {"parent": self._parent.get_state(), "used": used}
        first, state, _ = self._waiting[0]
        waiting = {number for number, *_ in self._waiting}
        used = [n - first for n in range(first, self._read) if n not in waiting]
        return {"parent": state, "used": used}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._forget(state["used"])

    def _fill(self) -> None:
        while len(self._waiting) < self._lookahead and not self._ended:
            state = self._parent.get_state()
            try:
                sequence = next(self._parent)
            except StopIteration:
                self._ended = True
                return
            number, self._read = self._read, self._read + 1
            if number in self._used:
                self._used.remove(number)
            else:
                self._waiting.append((number, state, sequence))


def _row(
    sequences: Sequence[Mapping[str, np.ndarray]], lengths: Mapping[str, int]
) -> dict[str, np.ndarray]:
    row = {}
    for name, length in lengths.items():
        like = sequences[0][name]
        values = np.zeros((length, *like.shape[1:]), like.dtype)
        segments, positions = np.zeros(length, np.int32), np.zeros(length, np.int32)
        end = 0
        for segment, sequence in enumerate(sequences, start=1):
            start, end = end, end + len(sequence[name])
            values[start:end] = sequence[name]
            segments[start:end] = segment
            positions[start:end] = np.arange(end - start)
        row |= {name: values, f"{name}_segment_ids": segments, f"{name}_positions": positions}
    return row
