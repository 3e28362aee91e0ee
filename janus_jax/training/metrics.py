"""What a run says of itself while it trains: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from janus_jax.errors import RunError

_TASKS = {"loss_und": "understanding", "loss_text": "text", "loss_gen": "generation"}


class MetricsLog:
    """One line of JSON a step: {"stage": ..., "step": ..., "loss": ..., ...}.

    TensorBoard events go next to it where tensorboardX is installed.
    """

    def __init__(self, run_dir: Path):
        self.path = run_dir / "metrics.jsonl"
        self._board = _board(run_dir / "tensorboard")

    def start_stage(self, stage: str, done: int) -> None:
        """Drops what a killed run wrote after its last checkpoint, so that no step appears twice."""
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= done]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        os.replace(temporary, self.path)

    def write(self, records: list[Mapping[str, Any]]) -> None:
        with self.path.open("a") as file:
            file.write("".join(json.dumps(r) + "\n" for r in records))
        if self._board is not None:
            for record in records:
                for name, value in record.items():
                    if isinstance(value, float):
                        self._board.add_scalar(f"{record['stage']}/{name}", value, record["step"])

    def read(self) -> list[dict[str, Any]]:
        """All records so far; a last line cut short by a kill is dropped."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def check_finite(stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Raises RunError, naming step and task, if any loss or the gradient is not finite."""
    if all(math.isfinite(v) for v in metrics.values()):
        return
    bad = [k for k, v in metrics.items() if not math.isfinite(v)]
    tasks = [name for key, name in _TASKS.items() if key in bad] or bad
    raise RunError(f"{stage} step {step}: not finite in {', '.join(tasks)}; stopped")


def progress_bar(stage: str, done: int, steps: int, quiet: bool) -> tqdm:
    """Step, rate and time left of one stage; `set_losses` adds the rest."""
    return tqdm(
        total=steps, initial=done, desc=stage, unit="step", disable=quiet, dynamic_ncols=True
    )


def set_losses(bar: tqdm, metrics: Mapping[str, float], tokens_per_s: float, wait: float) -> None:
    """Shows the losses by task, tokens/s and the share of time spent waiting for data."""
    shown = {k.removeprefix("loss_"): f"{v:.3f}" for k, v in metrics.items() if "loss" in k}
    shown |= {k: f"{metrics[k]:.2f}" for k in ("psnr", "accuracy", "codes_used") if k in metrics}
    bar.set_postfix({**shown, "tok/s": f"{tokens_per_s:.0f}", "data": f"{wait:.0%}"})


def _board(directory: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory))
