"""A loss far above its own history for many steps: training that looks healthy only because nothing is NaN.

Losses are compared in log space, where a spread means the same at 4.0 and at 0.04, with the best running
median so far, which single wild batches do not move. A history begins anew where a stage changes what it
optimizes (the image tokenizer's phases).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable

from janus_jax.training.objectives import phase_starts
from janus_jax.training.stages import Stage

WINDOW = 50  # steps of a running median
MANY = 20  # steps in a row
# How far above: this factor, and so many times the spread (a robust standard deviation) of the history.
FACTOR, SPREADS = 3.0, 6.0
_FLOOR = 1e-3  # losses below are all the same: a perfect fit that trembles is no divergence


@dataclasses.dataclass
class Divergence:
    """A loss that left its history.

    Attributes:
      first, last: steps; `last` grows while it goes on.
      loss: the newest one.
      usual: the best running median before.
    """

    first: int
    last: int
    loss: float
    usual: float

    def __str__(self) -> str:
        return (
            f"the loss is far above its own history since step {self.first} "
            f"({self.loss:.3g}, it was about {self.usual:.3g})"
        )


class DivergenceWatch:
    """Looks at one stage's losses in order; `found` has every divergence, `now` the one going on."""

    def __init__(self, phase_starts: Iterable[int] = ()):
        """`phase_starts`: steps (from 1) whose losses begin a new history."""
        self._phase_starts = frozenset(phase_starts)
        self.found: list[Divergence] = []
        self.now: Divergence | None = None
        self._begin()

    def _begin(self) -> None:
        self._recent: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._best, self._spread = math.inf, 0.0
        self._high: list[int] = []
        self.now = None

    def add(self, step: int, loss: float) -> None:
        """Takes the loss of the next step."""
        if step in self._phase_starts:
            self._begin()
        value = math.log(max(loss, _FLOOR)) if math.isfinite(loss) else math.inf
        margin = max(math.log(FACTOR), SPREADS * self._spread)
        if value > self._best + margin:
            self._high.append(step)
            if self.now is None and len(self._high) >= MANY:
                self.now = Divergence(self._high[0], step, loss, math.exp(self._best))
                self.found.append(self.now)
            if self.now is not None:
                self.now.last, self.now.loss = step, loss
            return
        self._high, self.now = [], None
        self._recent.append(value)
        self._best = min(self._best, _median(self._recent))
        self._spread = _spread(self._recent)


def watch(stage: Stage) -> DivergenceWatch:
    """A watch for a stage from its first step."""
    return DivergenceWatch(phase_starts(stage.objective, stage.options))


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _spread(values: Iterable[float]) -> float:
    """Standard deviation about the trend, from the median change from one step to the next."""
    changes = [abs(b - a) for a, b in itertools.pairwise(values)]
    return 1.4826 * _median(changes) / math.sqrt(2) if len(changes) >= 2 else 0.0
