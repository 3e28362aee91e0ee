"""report.md: a run in tables and pictures, made from the files in its directory alone.

Any part may be missing or damaged: what cannot be read is left out of the report, with a warning on stderr.
Written after the last stage; to write it again, such as for a run that is still going:

    python -c "from janus_jax.run.report import write_report; print(write_report('runs/janus_tiny'))"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.errors import UserError
from janus_jax.files import atomic_write
from janus_jax.run.report import files
from janus_jax.run.report.benchmarks import RunScores, highlight, highlights, score_sections
from janus_jax.run.report.curves import Steps, draw_curves
from janus_jax.run.report.held_out import PICTURE, held_out
from janus_jax.run.report.markdown import one_line, table
from janus_jax.run.report.notes import changes, divergences, left_out
from janus_jax.run.report.speed import NO_RESULT, speed
from janus_jax.run.report.watched import ROWS, what_it_answers, what_it_draws

REPORT, CURVES = "report.md", "report_losses.png"
LAST = 20  # steps that a stage's last loss is the mean of
# Fields of metrics.jsonl that are no result.
_NO_RESULT = {"stage", "step", "loss", "tokens", "tokens_per_s", "skipped", *NO_RESULT}
_NOTHING = "-"
_STAGE_HEADER = ("stage", "steps", "training, s", "tokens/s", "loss", "at the end")


def write_report(run_dir: str | Path) -> Path:
    """Writes report.md, and the pictures report_*.png that it shows, into a run directory.

    Reads config.json, changes.jsonl, stages.json, metrics.jsonl, scores.json, samples/*.png with their .json, and
    questions.json: a list of {"image": path from the run directory, "question", "answer", "truth",
    "right": bool}.

    Returns:
      The report's path.

    Raises:
      UserError: `run_dir` is no directory, or the disk is full.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"no run to report on: {run_dir} is not a directory")
    config, scores = files.read_config(run_dir), files.read_scores(run_dir)
    stages, seen = files.read_log(run_dir)
    samples = files.part(run_dir / "samples", {}, files.read_samples, run_dir)
    order = [*files.read_order(run_dir), *stages, *scores]
    order = [name for name in dict.fromkeys(order) if name in stages or name in scores]
    stages = {n: stages[n] for n in order if n in stages}
    skipped, stages = left_out(stages)
    name = config.get("name", run_dir.resolve().name)
    run_scores = RunScores(order, scores, config["eval"])
    sections = [
        f"# Run {name}",
        _note(config),
        divergences(stages, config["stages"]),
        skipped,
        _stage_table(order, stages, run_scores, config["stages"]),
        speed(stages),
        files.part(run_dir / CURVES, "", _losses, stages, run_dir / CURVES),
        files.part(run_dir / PICTURE, "", held_out, seen, run_dir / PICTURE),
        *(
            files.part(run_dir / "samples", "", make, run_dir, samples, order, config["stages"])
            for make in (what_it_draws, what_it_answers)
        ),
        files.part(run_dir / "samples", "", _samples, run_dir, samples, order),
        *score_sections(run_scores, run_dir / "scores.json"),
        _asked(files.read_questions(run_dir)),
        _changes(run_dir),
    ]
    if not order:
        sections.insert(3, "Nothing has been trained yet.")
    path = run_dir / REPORT
    text = "\n\n".join(s for s in sections if s) + "\n"
    # JSON can hold halves of surrogate pairs, UTF-8 cannot.
    atomic_write(path, text.encode(errors="replace"))
    return path


def _losses(stages: Mapping[str, Steps], path: Path) -> str:
    if not stages:
        return ""
    draw_curves(stages, path)
    return f"## Losses\n\n![Loss of every stage by step]({path.name})"


def _changes(run_dir: Path) -> str:
    rows = changes(files.read_changes(run_dir))
    if not rows:
        return ""
    header = ["when", "after the saved steps", "field", "was", "now", "changes the result"]
    return (
        "## Changes\n\nThe config was not the same all the time; what is above is the newest one."
        f"\n\n{table(header, rows)}"
    )


def _note(config: Mapping[str, Any]) -> str:
    note = config["eval"].get("note", "")
    return f"> **{one_line(note)}**" if note else ""


def _stage_table(
    order: Sequence[str], stages: Mapping[str, Steps], scores: RunScores, settings: Mapping
) -> str:
    rows, shown = [], highlights(scores)
    for name in order:
        steps, entry = stages.get(name, []), scores.entry(name)
        row = [name, *[_NOTHING] * 5]
        if steps:
            rates = [s["tokens_per_s"] for s in steps if "tokens_per_s" in s]
            rate = f"{np.median(rates):.0f}" if rates else _NOTHING
            loss = f"{steps[0]['loss']:.3f} -> {_last(steps, 'loss'):.3f}"
            done, of = steps[-1]["step"], settings.get(name, {}).get("steps")
            done = done if of in (None, done) else f"{done} of {of}"
            row = [name, done, _NOTHING, rate, loss, _results(steps)]
        if "train_seconds" in entry:
            row[2] = f"{entry['train_seconds']:.0f}"
        rows.append([*row, *(highlight(entry, h) for h in shown)])
    if not rows:
        return ""
    train, score = (
        sum(entry.get(k, 0.0) for entry in scores.entries) / 60
        for k in ("train_seconds", "scoring_seconds")
    )
    header = [*_STAGE_HEADER, *(h.heading for h in shown)]
    text = (
        f"## Stages\n\n{table(header, rows)}\n\n"
        f"Loss: the first step's -> the mean of the last {LAST}. Training time has the checkpoints and "
        "sample grids in it; of a stage that was interrupted, only what came after."
    )
    text += f" Training took {train:.1f} minutes, scoring {score:.1f}." if train else ""
    peak = max((entry.get("peak_memory_gib", 0.0) for entry in scores.entries), default=0.0)
    return text + (f" Peak memory of the process: {peak:.2f} GiB." if peak else "")


def _last(steps: Steps, field: str) -> float:
    """Mean over the last steps; a task's loss is 0 in a batch without it, which does not count."""
    values = [s[field] for s in steps[-LAST:] if field in s]
    if field.startswith("loss_"):
        values = [v for v in values if v] or [0.0]
    return float(np.mean(values))


def _results(steps: Steps) -> str:
    """What else a stage reports, such as the loss by task, as means over the last steps."""
    fields = [f for f in steps[-1] if _is_result(f) and any(s.get(f) for s in steps)]
    shown = [f"{f.removeprefix('loss_')} {_last(steps, f):.3f}" for f in sorted(fields)]
    return ", ".join(shown) or _NOTHING


def _is_result(field: str) -> bool:
    return field not in _NO_RESULT and not field.startswith("grad_norm")


def _samples(run_dir: Path, samples: files.Samples, order: Sequence[str]) -> str:
    """The last grid of the last stage that has one, and what was asked for, laid out the same way."""
    grids = []
    for path in sorted((run_dir / "samples").glob("*_*.png")):
        stage, step = path.stem.rsplit("_", 1)
        # The pictures of questions lie here, too, under names that are no stage.
        if step.isdecimal() and stage in order:
            grids.append((order.index(stage), int(step), path))
    shapes = ((*grid, files.picture_shape(grid[-1])) for grid in sorted(grids, reverse=True))
    index, step, path, shape = next((found for found in shapes if found[-1]), (None,) * 4)
    if path is None:
        return ""
    record = samples.get(f"{path.stem}.json", {})
    prompts = record.get("prompts", [])
    if record.get("columns") and len(prompts) <= ROWS:
        return ""  # all of it is in `what_it_draws`
    stage = order[index]
    text = f"## Samples\n\nAfter step {step} of {stage}.\n\n![Samples](samples/{path.name})"
    if len(prompts) < 2:  # one for the whole grid
        return "\n\n".join([text, *map(one_line, prompts)])
    # The tiles are square, so the grid's shape says how many are in a row.
    count = len(prompts)
    columns = min(range(1, count + 1), key=lambda c: abs(c / -(-count // c) - shape))
    lines = [prompts[i : i + columns] for i in range(0, count, columns)]
    lines[-1] += [""] * (columns - len(lines[-1]))
    return f"{text}\n\nAsked for, picture by picture:\n\n{table([''] * columns, lines)}"


def _asked(questions: Sequence[Mapping[str, Any]]) -> str:
    if not questions:
        return ""
    rows = []
    for q in questions:
        picture, right = f'<img src="{q["image"]}" width="96">', "yes" if q["right"] else "no"
        rows.append([picture, q["question"], q["answer"], q["truth"], right])
    header = ["picture", "question", "answer", "truth", "right"]
    return f"### Some questions with their answers\n\n{table(header, rows)}"
