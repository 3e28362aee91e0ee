"""What is said about a stage while it trains: metrics, progress bar, and whether its loss diverges."""

from __future__ import annotations

import sys
import time

import jax
from tqdm import tqdm

from janus_jax.errors import RunError
from janus_jax.training.divergence import Divergence, DivergenceWatch, watch
from janus_jax.training.metrics import MetricsLog, progress_bar, set_losses
from janus_jax.training.skips import Skips
from janus_jax.training.stages import Stage


class Monitor:
    """Metrics and progress bar of a stage, and whether its loss diverges."""

    def __init__(
        self, stage: Stage, done: int, log: MetricsLog, quiet: bool, strict: bool, skips: Skips
    ):
        self.pending: list[tuple[int, float, float, dict[str, jax.Array]]] = []
        self._stage, self._log, self._strict = stage, log, strict
        self._bar = progress_bar(stage.name, done, stage.steps, quiet)
        self._watch: DivergenceWatch = watch(stage)
        self._skips = skips
        for record in log.read() if done else []:
            if record["stage"] == stage.name and not skips.remember(record):
                self._watch.add(record["step"], record["loss"])
        self._reported: Divergence | None = None

    def record(self) -> list[dict[str, float]]:
        """Fetches the metrics of the steps since the last time, checks, writes and returns them."""
        pending, self.pending = self.pending, []
        values = jax.device_get([m for *_, m in pending])
        elapsed = time.perf_counter() - pending[0][1]
        waited = sum(w for _, _, w, _ in pending)
        rows = [{k: float(v) for k, v in sorted(m.items())} for m in values]
        rate = sum(r["tokens"] for r in rows) / elapsed
        name = self._stage.name
        counted = [
            (done, row)
            for (done, *_), row in zip(pending, rows, strict=True)
            if not self._skips.look(done, row)
        ]
        shares = {"tokens_per_s": rate, "data_wait": waited / elapsed}
        self._log.write(
            [
                {"stage": name, "step": done, **row, **shares}
                for (done, *_), row in zip(pending, rows, strict=True)
            ]
        )
        self._bar.update(len(pending))
        set_losses(self._bar, rows[-1], rate, waited / elapsed)
        for done, row in counted:
            self._watch.add(done, row["loss"])
        self._report_divergence()
        return rows

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
            raise RunError(f"{name} step {now.last}: {now}")
        else:
            tqdm.write(f"warning: {name}: {now}", file=sys.stderr)
