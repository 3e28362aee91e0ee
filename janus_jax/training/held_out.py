"""Losses of held-out data while a stage trains: when they are computed, where they are kept, and when to stop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from janus_jax.models import Params
from janus_jax.training.metrics import HELD_OUT, MetricsLog
from janus_jax.training.stages import Stage

# Parameters -> losses, with "loss" among them; {} where nothing is held out that can be used.
Evaluate = Callable[[Params], Mapping[str, Any]]


class HeldOutWatch:
    """The held-out losses of a stage: lines of metrics.jsonl, {"stage", "step", "held_out": {...}}.

    Args:
      stage: what trains.
      log: of the run.
      evaluate: the losses of parameters.
      every: steps between two of them; 0: before the first step and after the last one alone.
      patience: so many in a row that are not lower than the best one end the stage; 0 for never.
      quiet: say nothing.

    Attributes:
      best, last: (loss, step) of the lowest so far, and of the newest; None before the first.
    """

    def __init__(
        self,
        stage: Stage,
        log: MetricsLog,
        evaluate: Evaluate,
        every: int,
        patience: int = 0,
        quiet: bool = False,
    ):
        self._stage, self._log, self._evaluate = stage, log, evaluate
        self._every, self._patience, self._quiet = every, patience, quiet
        self._worse, self.best, self.last = 0, None, None
        self._done: set[int] = set()

    def start(self, done: int, params: Params) -> None:
        """Goes on from what is logged; the losses before the first step are computed here."""
        for record in self._log.read_held_out(self._stage.name):
            self._count(record["step"], record[HELD_OUT]["loss"])
        if done not in self._done and (done == 0 or self.due(done)):
            self.look(done, params)

    def due(self, step: int) -> bool:
        """Whether losses after a step are asked for."""
        return step == self._stage.steps or (self._every > 0 and step % self._every == 0)

    def look(self, step: int, params: Params) -> dict[str, float]:
        """Computes, logs and says the losses after a step; returns what is saved with its checkpoint."""
        found = dict(self._evaluate(params))
        if not found:
            return {}
        self._count(step, found["loss"])
        self._log.write([{"stage": self._stage.name, "step": step, HELD_OUT: found}])
        if not self._quiet and jax.process_index() == 0:
            tasks = ", ".join(
                f"{name.removeprefix('loss_')} {value:.4f}"
                for name, value in found.items()
                if name.startswith("loss_")
            )
            tqdm.write(
                f"{self._stage.name} step {step}: held-out loss {found['loss']:.4f} ({tasks})",
                file=sys.stderr,
            )
        return {HELD_OUT: found["loss"]}

    @property
    def exhausted(self) -> bool:
        """Whether the loss has not become lower for as long as is allowed."""
        return 0 < self._patience <= self._worse

    def _count(self, step: int, loss: float) -> None:
        self._done.add(step)
        self.last = (loss, step)
        if math.isfinite(loss) and (self.best is None or loss < self.best[0]):
            self.best, self._worse = (loss, step), 0
        else:
            self._worse += 1
