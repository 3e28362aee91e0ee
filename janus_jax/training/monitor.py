"""What is said about a stage while it trains: metrics, progress bar, and whether its loss diverges."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from tqdm import tqdm

from janus_jax.errors import NumbersError
from janus_jax.training.divergence import Divergence, DivergenceWatch, watch
from janus_jax.training.flops import Flops
from janus_jax.training.meter import Meter
from janus_jax.training.metrics import MetricsLog, progress_bar, set_losses
from janus_jax.training.optimizer import learning_rate
from janus_jax.training.skips import Skips
from janus_jax.training.stages import Stage


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step that was handed to the device: its number, when it began, seconds of waiting for its batch."""

    done: int
    began: float
    waited: float
    metrics: Mapping[str, jax.Array]
    fill: Mapping[str, float]
    flops: Flops | None


class Monitor:
    """Metrics and progress bar of a stage, and whether its loss diverges.

    Args:
      stage: what trains.
      done: steps that are done already.
      log: of the run.
      quiet: no progress bar.
      strict: a loss that diverges is an error.
      skips: steps that were left out.
      meter: of how well the machine is used; None leaves that out.
      rejected: the share of the data that was left out so far; a metric once there is some.
    """

    def __init__(
        self,
        stage: Stage,
        done: int,
        log: MetricsLog,
        quiet: bool,
        strict: bool,
        skips: Skips,
        meter: Meter | None = None,
        rejected: Callable[[], float] = lambda: 0.0,
    ):
        self._rejected = rejected
        self.pending: list[_Step] = []
        self._stage, self._log, self._strict, self._meter = stage, log, strict, meter
        self._rate = learning_rate(stage)
        self._bar = progress_bar(stage.name, done, stage.steps, quiet)
        self._bar.set_postfix_str("compiling the step")  # minutes of a large model
        self._compiling = True
        self._watch: DivergenceWatch = watch(stage)
        self._skips = skips
        for record in log.read() if done else []:
            if record["stage"] == stage.name and not skips.remember(record):
                self._watch.add(record["step"], record["loss"])
        self._reported: Divergence | None = None

    def add(
        self,
        done: int,
        began: float,
        waited: float,
        metrics: Mapping[str, jax.Array],
        batch: Mapping[str, Any],
    ) -> None:
        """A step that was handed to the device; its metrics are fetched by `record`.

        Args:
          done: steps after it.
          began: `time.perf_counter()` before its batch was fetched.
          waited: seconds that this took.
          metrics: of the step.
          batch: this process's part of it, on the host.
        """
        if self._compiling:
            self._bar.set_postfix_str("")
            self._compiling = False
        fill, flops = self._meter.step(batch) if self._meter else ({}, None)
        self.pending.append(_Step(done, began, waited, metrics, fill, flops))

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """The bar says what takes a while, between two steps."""
        self._bar.set_postfix_str(what)
        yield
        self._bar.set_postfix_str("compiling the step" if self._compiling else "")

    def record(self) -> list[dict[str, float]]:
        """Fetches the metrics of the steps since the last time, checks, writes and returns them."""
        pending, self.pending = self.pending, []
        values = jax.device_get([step.metrics for step in pending])
        elapsed = time.perf_counter() - pending[0].began
        rows = [{k: float(v) for k, v in sorted(m.items())} for m in values]
        name = self._stage.name
        counted = [
            (step.done, row)
            for step, row in zip(pending, rows, strict=True)
            if not self._skips.look(step.done, row)
        ]
        shares = self._shares(pending, sum(r["tokens"] for r in rows), elapsed)
        records = []
        for step, row in zip(pending, rows, strict=True):
            rate = {"learning_rate": float(self._rate(step.done - 1))}
            records.append({"stage": name, "step": step.done, **row, **shares, **step.fill, **rate})
        self._log.write(records)
        self._bar.update(len(pending))
        set_losses(self._bar, records[-1])
        for done, row in counted:
            self._watch.add(done, row["loss"])
        self._report_divergence()
        return rows

    def _shares(self, steps: list[_Step], tokens: float, elapsed: float) -> dict[str, float]:
        """What is measured of several steps together."""
        waited = sum(step.waited for step in steps)
        shares = {"tokens_per_s": tokens / elapsed, "data_wait": waited / elapsed}
        if rejected := self._rejected():
            shares["rejected"] = rejected
        if self._meter is None:
            return shares
        rates = self._meter.rates(tokens, [step.flops for step in steps], elapsed)
        return shares | rates | self._meter.memory()

    @property
    def diverged_at(self) -> int | None:
        """The step since which the loss is far above its own history, if it is."""
        return self._watch.now.first if self._watch.now else None

    def close(self) -> None:
        self._bar.close()

    def _report_divergence(self) -> None:
        now, name = self._watch.now, self._stage.name
        if now is self._reported:
            return
        self._reported = now
        self._bar.set_description(f"{name} (DIVERGED)" if now else name)
        if now is None:
            tqdm.write(f"{name}: the loss is back where it was", file=sys.stderr)
        elif self._strict:
            raise NumbersError(f"{name} step {now.last}: {now}")
        else:
            tqdm.write(f"warning: {name}: {now}", file=sys.stderr)
