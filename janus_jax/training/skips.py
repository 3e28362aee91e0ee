"""Steps that the compiled step left out, as their loss or gradient was not finite: counted, named, and an end to
the run where there are too many in a row."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import jax
from tqdm import tqdm

from janus_jax.errors import NumbersError
from janus_jax.training.metrics import check_finite, not_finite


class Skips:
    """The steps of a stage that were left out.

    Such a step reports the metric `skipped`, 1.0, and has changed nothing in the state but its number.

    Attributes:
      in_a_row: how many of the newest steps were left out.
      total: how many of all.
    """

    def __init__(self, stage: str, limit: int):
        """`limit`: so many in a row are an error; with 1, the first one is."""
        self._stage, self._limit = stage, limit
        self.in_a_row = self.total = 0

    def remember(self, metrics: Mapping[str, float]) -> bool:
        """Counts a step; returns whether it was left out."""
        skipped = bool(metrics.get("skipped"))
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.total += skipped
        return skipped

    def look(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Counts a new step; returns whether it was left out.

        Raises:
          NumbersError: it is the last of so many in a row, or it is not finite and was not left out.
        """
        if not self.remember(metrics):
            check_finite(self._stage, step, metrics)
            return False
        what = f"not finite in {', '.join(not_finite(metrics)) or 'what it computed'}"
        if self.in_a_row >= self._limit:
            before = self.in_a_row - 1
            # The steps before may be of a run that was stopped in between, with another limit.
            which = f", as in the {before} steps before it" if before else ""
            raise NumbersError(f"{self._stage} step {step}: {what}{which}; stopped")
        if self.in_a_row == 1 and jax.process_index() == 0:
            tqdm.write(
                f"warning: {self._stage} step {step}: {what}; left out ({self.total} so far, "
                f"{self._limit} in a row stop the run)",
                file=sys.stderr,
            )
        return True


def mean_losses(rows: list[Mapping[str, float]]) -> dict[str, float]:
    """Means of `loss` and of each `loss_...` over steps, but for those left out; {} without any.

    A task's loss is 0 in a batch without it, which does not count.
    """
    rows = [row for row in rows if not row.get("skipped")]
    names = {name for row in rows for name in row if name == "loss" or name.startswith("loss_")}
    found = {}
    for name in sorted(names):
        values = [row[name] for row in rows if name in row and (row[name] or name == "loss")]
        if values:
            found[name] = math.fsum(values) / len(values)
    return found
