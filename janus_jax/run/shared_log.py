"""metrics.jsonl of a job of several processes: the first one writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.parallel import first_only, is_first
from janus_jax.training import MetricsLog


class SharedLog:
    """A `MetricsLog` that every process may use as if it were its own."""

    def __init__(self, run_dir: Path):
        self._log = MetricsLog(run_dir) if is_first() else None

    def start_stage(self, stage: str, done: int) -> None:
        first_only(lambda: self._log.start_stage(stage, done))

    def write(self, records: list[Mapping[str, Any]]) -> None:
        if self._log is not None:
            self._log.write(records)

    def read(self) -> list[dict[str, Any]]:
        """All records so far, with their losses alone, and whether they were left out."""
        needed = ("stage", "step", "loss")
        keep = (*needed, "skipped")

        def read():
            records = (r for r in self._log.read() if r.keys() >= set(needed))
            return [{k: r[k] for k in keep if k in r} for r in records]

        return first_only(read)

    def read_held_out(self, stage: str) -> list[dict[str, Any]]:
        """The lines with losses of held-out data of a stage."""
        return first_only(lambda: self._log.read_held_out(stage))

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
