"""What a reader of a report should know before its numbers: losses that left their history, steps that were left
out, fields of the config that were changed on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from janus_jax.run.report.curves import Steps
from janus_jax.training.divergence import DivergenceWatch
from janus_jax.training.objectives import phase_starts


def divergences(stages: Mapping[str, Steps], settings: Mapping[str, Any]) -> str:
    """A warning for every stretch of steps in which a stage's loss was far above its own history.

    Args:
      stages: stage -> its lines of metrics.jsonl.
      settings: `stages` of the config.
    """
    lines = []
    for name, steps in stages.items():
        stage = settings.get(name) or {}
        watch = DivergenceWatch(
            phase_starts(stage.get("objective", ""), stage.get("options") or {})
        )
        for record in steps:
            watch.add(record["step"], record["loss"])
        for found in watch.found:
            end = "to the end" if found is watch.now else f"to step {found.last}"
            lines.append(
                f"> **{name} diverged**: from step {found.first} {end} its loss was far above its own "
                f"history ({found.loss:.3g}, it had been about {found.usual:.3g})."
            )
    return "\n>\n".join(lines)


def left_out(stages: Mapping[str, Steps]) -> tuple[str, dict[str, Steps]]:
    """(what to say of the steps that were left out, the lines of metrics.jsonl without them)."""
    lines, counted = [], {}
    for name, steps in stages.items():
        counted[name] = [s for s in steps if not s.get("skipped")]
        if skipped := [s["step"] for s in steps if s.get("skipped")]:
            shown = ", ".join(map(str, skipped[:5])) + (" ..." if len(skipped) > 5 else "")
            lines.append(
                f"> **{name}**: {len(skipped)} of {len(steps)} steps were left out, as their loss or gradient was "
                f"not finite (step {shown})."
            )
    return "\n>\n".join(lines), {name: steps for name, steps in counted.items() if steps}


def changes(records: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """Rows (time, steps then saved, field, was, now, whether it changes the result) of changes.jsonl."""
    rows = []
    for record in records:
        at = ", ".join(f"{name} {step}" for name, step in record["at"].items()) or "the start"
        for field, (was, now) in record["changes"].items():
            counts = "yes" if field in record["allowed"] else "no"
            rows.append([record["time"], at, field, was, now, counts])
    return rows
