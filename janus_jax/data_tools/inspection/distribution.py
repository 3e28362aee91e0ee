"""How whole numbers are spread: exact, in memory that depends on how many of them differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any


class Distribution:
    """Whole numbers of at least 0, such as the lengths of sequences, counted."""

    def __init__(self, values: Iterable[int] = ()):
        self._counts: Counter[int] = Counter(values)

    def add(self, values: Iterable[int]) -> None:
        self._counts.update(values)

    def __len__(self) -> int:
        """How many numbers were added."""
        return self._counts.total()

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(value * count for value, count in self._counts.items())

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of all does not exceed; there must be one."""
        wanted, so_far = max(1, math.ceil(share * len(self))), 0
        for value, count in sorted(self._counts.items()):
            so_far += count
            if so_far >= wanted:
                return value
        raise ValueError("no number was added")

    def summary(self) -> dict[str, Any]:
        """JSON-ready: count, and where there are any min, median, p95, max and mean."""
        if not self._counts:
            return {"count": 0}
        return {
            "count": len(self),
            "min": self.quantile(0),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": self.quantile(1),
            "mean": round(self.total / len(self), 3),
        }

    def histogram(self, bars: int = 24) -> list[tuple[int, int, int]]:
        """(smallest, largest, how many) of at most `bars` equally wide ranges that cover all numbers."""
        if not self._counts:
            return []
        low, high = min(self._counts), max(self._counts)
        width = math.ceil((high - low + 1) / bars)
        counts = [0] * math.ceil((high - low + 1) / width)
        for value, count in self._counts.items():
            counts[(value - low) // width] += count
        return [
            (low + i * width, min(low + (i + 1) * width - 1, high), count)
            for i, count in enumerate(counts)
        ]
