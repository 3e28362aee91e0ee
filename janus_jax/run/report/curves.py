"""Loss curves of a run as one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.files import atomic_write

Steps = list[dict[str, Any]]  # lines of metrics.jsonl

# Fixed, so that a task looks the same in every stage and every run.
_COLOURS = {"und": "#1f77b4", "text": "#2ca02c", "gen": "#d95f02"}
_OTHER = "#333333"


def draw_curves(stages: Mapping[str, Steps], path: Path) -> None:
    """Writes a PNG with one panel a stage: every step's loss, faint, and its running mean.

    Stages with several tasks get a curve for each ("loss_und" and so on, in nats a token).
    """
    from matplotlib.figure import Figure  # slow to import, and only needed once a run

    columns = min(3, len(stages))
    rows = -(-len(stages) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    for i, (name, steps) in enumerate(stages.items()):
        axes = figure.add_subplot(rows, columns, i + 1, title=name, xlabel="step", ylabel="loss")
        drawn = {}
        for field in _fields(steps):
            # 0: the batch had nothing of this task.
            points = [(s["step"], s[field]) for s in steps if s.get(field)]
            if not points:
                continue
            x, y = np.array(points, float).T
            label = field.removeprefix("loss_")
            colour = _COLOURS.get(label, _OTHER)
            drawn[field] = _smooth(y, max(1, len(y) // 30))
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(x, drawn[field], color=colour, linewidth=1.6, label=label)
        values = np.concatenate(list(drawn.values()) or [np.ones(1)])
        if values.min() > 0 and values.max() > 10.0 * values.min():
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if [*drawn] != ["loss"]:
            axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    atomic_write(path, png.getvalue())


def draw_held_out(stages: Mapping[str, Steps], path: Path) -> None:
    """Writes a PNG with one panel a stage: the losses of held-out data by task, and their mean by ratio.

    Args:
      stages: stage -> dicts of "step", "loss" and "loss_und" and so on.
      path: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(stages), 3.1), layout="constrained")
    for i, (name, seen) in enumerate(stages.items()):
        axes = figure.add_subplot(1, len(stages), i + 1, title=name, xlabel="step")
        axes.set_ylabel("held-out loss")
        for field in [*_fields(seen), "loss"]:
            label = "all" if field == "loss" else field.removeprefix("loss_")
            points = [(x["step"], x[field]) for x in seen if field in x]
            axes.plot(
                *np.array(points, float).T,
                color=_COLOURS.get(label, _OTHER),
                linestyle="--" if field == "loss" else "-",
                marker=".",
                label=label,
            )
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    atomic_write(path, png.getvalue())


def _fields(steps: Steps) -> list[str]:
    """The losses by task where there are several, or else the whole loss."""
    names = sorted({f for s in steps for f in s if f.removeprefix("loss_") in _COLOURS})
    return [f for f in names if any(s.get(f) for s in steps)] or ["loss"]


def _smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over up to `half` neighbours on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
