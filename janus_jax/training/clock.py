"""Saving by the clock, at the same step in every process."""

from __future__ import annotations

import time
from collections.abc import Callable

from janus_jax.parallel import first_only


class SaveClock:
    """Whether it is time for a checkpoint."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic):
        """`minutes`: between two checkpoints; 0 for never. `now` gives seconds."""
        self._seconds, self._now = minutes * 60, now
        self.restart()

    def restart(self) -> None:
        """A checkpoint was made."""
        self._last = self._now()

    def due(self) -> bool:
        """What the first process's clock says; all processes must ask, at the same place."""
        return self._seconds > 0 and first_only(lambda: self._now() - self._last >= self._seconds)
