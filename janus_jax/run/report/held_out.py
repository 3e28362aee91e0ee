"""The losses of held-out data in a report: before and after, by task and source, and as curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data import TASKS
from janus_jax.data.manifest import TASK_WORDS
from janus_jax.run.report.curves import draw_held_out
from janus_jax.run.report.markdown import table
from janus_jax.untrusted import printable

PICTURE = "report_held_out.png"
_WORDS = {task: word for word, task in TASK_WORDS.items()}
# A stage's evaluations: dicts of "step", "losses" ("loss", "loss_und" ... -> number), "sources" (label -> number).
Seen = Sequence[Mapping[str, Any]]


def held_out(stages: Mapping[str, Seen], path: Path) -> str:
    """A section with a table a stage, and the picture that it shows; "" where nothing was held out.

    Args:
      stages: stage -> its evaluations, by step.
      path: of the picture.
    """
    if not stages:
        return ""
    draw_held_out({name: [_flat(x) for x in seen] for name, seen in stages.items()}, path)
    parts = [
        "## Held-out data\n\nNats a target of records that were kept from training; nothing is left to chance in "
        "them, so any change is one of the model."
    ]
    for name, seen in stages.items():
        parts.append(_table(name, seen))
    parts.append(f"![Held-out loss by step]({path.name})")
    return "\n\n".join(parts)


def _flat(seen: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": seen["step"], **seen["losses"]}


def _table(name: str, seen: Seen) -> str:
    first, last = seen[0], seen[-1]
    loss = lambda x: x["losses"]["loss"]
    best = min(seen, key=lambda x: (not math.isfinite(loss(x)), loss(x), x["step"]))
    shown = [first] if len(seen) == 1 else [first, best, last]
    header = [f"step {first['step']}"]
    if len(seen) > 1:
        header += [f"best, step {best['step']}", f"last, step {last['step']}", "change"]
    rows = [["all, by ratio", *_cells(shown, "losses", "loss")]]
    rows += [
        [_WORDS[task], *_cells(shown, "losses", f"loss_{task}")]
        for task in TASKS
        if f"loss_{task}" in first["losses"]
    ]
    rows += [
        [f"source {printable(label, 60)}", *_cells(shown, "sources", label)]
        for label in first["sources"]
    ]
    return table([name, *header], rows)


def _cells(shown: Seen, kind: str, field: str) -> list[str]:
    """The values of a field, and how it changed from the first to the last."""
    values = [x[kind].get(field) for x in shown]
    cells = ["-" if value is None else f"{value:.4f}" for value in values]
    if len(shown) > 1:
        known = values[0] is not None and values[-1] is not None
        cells.append(f"{values[-1] - values[0]:+.4f}" if known else "-")
    return cells
