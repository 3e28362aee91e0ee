"""report.md: a run in tables and pictures, made from the files in its directory alone.

Any part may be missing: what is not there is left out of the report. Written after the last stage; to write
it again, such as for a run that is still going:

    python -c "from janus_jax.run.report import write_report; print(write_report('runs/janus_tiny'))"
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.errors import UserError

REPORT, CURVES = "report.md", "report_losses.png"
LAST = 20  # steps that a stage's last loss is the mean of
# Fields of metrics.jsonl that are no result.
_NO_RESULT = {"stage", "step", "loss", "grad_norm", "tokens", "tokens_per_s", "data_wait"}
_COLOURS = {"loss": "#333333", "und": "#1f77b4", "text": "#2ca02c", "gen": "#d95f02"}
_NO_SCORE = "-"

Steps = list[dict[str, Any]]


def write_report(run_dir: str | Path) -> Path:
    """Writes report.md, and report_losses.png that it shows, into a run directory.

    Reads config.json, stages.json, metrics.jsonl, scores.json, samples/*.png with their .json, and
    questions.json: a list of {"image": path from the run directory, "question", "answer", "truth",
    "right": bool}.

    Returns:
      The report's path.

    Raises:
      UserError: `run_dir` is no directory.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"no run to report on: {run_dir} is not a directory")
    config, scores = _json(run_dir / "config.json", {}), _json(run_dir / "scores.json", {})
    stages = _stages(run_dir / "metrics.jsonl")
    order = _json(run_dir / "stages.json", [])
    order = [*order, *(name for name in [*stages, *scores] if name not in order)]
    order = [name for name in dict.fromkeys(order) if name in stages or name in scores]
    name = config.get("name", run_dir.resolve().name)
    if stages:
        _draw_curves({n: stages[n] for n in order if n in stages}, run_dir / CURVES)
    scored = next((n for n in reversed(order) if "mini_geneval" in scores.get(n, {})), None)
    final = scores[scored] if scored else {}
    judge = next((scores[n]["judge"] for n in order if "judge" in scores.get(n, {})), {})
    sections = [
        f"# Run {name}",
        _note(config),
        _stage_table(order, stages, scores),
        f"## Losses\n\n![Loss of every stage by step]({CURVES})" if stages else "",
        _samples(run_dir, order),
        _drawing(final, judge, scored),
        _guidance(final),
        _questions(final, scored),
        _asked(_json(run_dir / "questions.json", [])),
    ]
    if not order:
        sections.insert(2, "Nothing has been trained yet.")
    path = run_dir / REPORT
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n\n".join(s for s in sections if s) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def _stages(path: Path) -> dict[str, Steps]:
    """Stage -> its lines of metrics.jsonl; a line cut short by a kill ends the reading."""
    stages: dict[str, Steps] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        stages.setdefault(record["stage"], []).append(record)
    return stages


def _note(config: Mapping[str, Any]) -> str:
    note = (config.get("eval") or {}).get("note", "")
    return f"> **{note}**" if note else ""


def _stage_table(order: Sequence[str], stages: Mapping[str, Steps], scores: Mapping) -> str:
    rows = []
    for name in order:
        steps, entry = stages.get(name, []), scores.get(name, {})
        drawn, asked = entry.get("mini_geneval", {}), entry.get("questions", {})
        rows.append(
            [
                name,
                str(steps[-1]["step"]) if steps else _NO_SCORE,
                f"{entry['train_seconds']:.0f}" if "train_seconds" in entry else _NO_SCORE,
                f"{np.median([s['tokens_per_s'] for s in steps]):.0f}" if steps else _NO_SCORE,
                f"{steps[0]['loss']:.3f} -> {_last(steps, 'loss'):.3f}" if steps else _NO_SCORE,
                _results(steps),
                _score(drawn, "single_object", "plain"),
                _score(drawn, "mean", "plain"),
                _score(asked, "mean", "accuracy"),
            ]
        )
    if not rows:
        return ""
    header = [
        "stage",
        "steps",
        "training, s",
        "tokens/s",
        "loss",
        "at the end",
        "mini-GenEval, one object",
        "mini-GenEval, mean",
        "questions, mean",
    ]
    entries = scores.values()
    total = {k: sum(e.get(k, 0.0) for e in entries) for k in ("train_seconds", "scoring_seconds")}
    text = (
        f"## Stages\n\n{_table(header, rows)}\n\n"
        f"Loss: the first step's -> the mean of the last {LAST}. Training time has the checkpoints and "
        "sample grids in it, and of a resumed stage only the part after it was resumed for the last "
        "time."
    )
    if total["train_seconds"]:
        text += (
            f" Training took {total['train_seconds'] / 60:.1f} minutes, scoring "
            f"{total['scoring_seconds'] / 60:.1f}."
        )
    peak = max((e.get("peak_memory_gib", 0.0) for e in entries), default=0.0)
    return text + (f" Peak memory of the process: {peak:.2f} GiB." if peak else "")


def _last(steps: Steps, field: str) -> float:
    """Mean over the last steps; a task's loss is 0 in a batch without it, which does not count."""
    values = [s[field] for s in steps[-LAST:] if field in s]
    if field.startswith("loss_"):
        values = [v for v in values if v] or [0.0]
    return float(np.mean(values))


def _results(steps: Steps) -> str:
    """What else a stage reports, such as the loss by task, as means over the last steps."""
    if not steps:
        return _NO_SCORE
    fields = [f for f in steps[-1] if f not in _NO_RESULT and any(s.get(f) for s in steps)]
    shown = [f"{f.removeprefix('loss_')} {_last(steps, f):.3f}" for f in sorted(fields)]
    return ", ".join(shown) or _NO_SCORE


def _draw_curves(stages: Mapping[str, Steps], path: Path) -> None:
    """One panel a stage: every step's loss, faint, and its running mean; by task where there are tasks."""
    from matplotlib.figure import Figure  # slow to import, and only needed once a run

    columns = min(3, len(stages))
    rows = -(-len(stages) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    for i, (name, steps) in enumerate(stages.items()):
        axes = figure.add_subplot(rows, columns, i + 1, title=name, xlabel="step")
        axes.set_ylabel("loss")
        by_task = [f for f in sorted(steps[-1]) if f.startswith("loss_")]
        fields = [f for f in by_task if any(s.get(f) for s in steps)] or ["loss"]
        for field in fields:
            label = field.removeprefix("loss_")
            colour = _COLOURS.get(label, _COLOURS["loss"])
            points = [(s["step"], s[field]) for s in steps if s.get(field)]
            if not points:
                continue
            x, y = np.array(points, float).T
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(x, _smooth(y, max(1, len(y) // 30)), color=colour, linewidth=1.6, label=label)
        values = [s[f] for s in steps for f in fields if s.get(f, 0.0) > 0.0]
        if values and max(values) > 10.0 * min(values):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if fields != ["loss"]:
            axes.legend(frameon=False)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png", dpi=110)
    os.replace(temporary, path)


def _smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over up to `half` neighbours on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _samples(run_dir: Path, order: Sequence[str]) -> str:
    """The last grid of the last stage that has one, and what was asked for, laid out the same way."""
    for name in reversed(order):
        grids = sorted((run_dir / "samples").glob(f"{name}_*.png"))
        if not grids:
            continue
        path = grids[-1]
        step = int(path.stem.rsplit("_", 1)[-1])
        text = f"## Samples\n\nAfter step {step} of {name}.\n\n![Samples](samples/{path.name})"
        prompts = _json(path.with_suffix(".json"), {}).get("prompts", [])
        columns = _columns(path, len(prompts))
        if len(prompts) > 1:
            lines = [prompts[i : i + columns] for i in range(0, len(prompts), columns)]
            lines[-1] += [""] * (columns - len(lines[-1]))
            header = [""] * columns
            return f"{text}\n\nWhat was asked for, picture by picture:\n\n{_table(header, lines)}"
        return text + (f"\n\n{_cell(prompts[0])}" if prompts else "")
    return ""


def _columns(path: Path, count: int) -> int:
    """Columns of a grid of `count` square tiles, from its shape."""
    with Image.open(path) as image:
        shape = image.width / image.height
    return min(range(1, count + 1), key=lambda c: abs(c / -(-count // c) - shape), default=1)


def _drawing(final: Mapping[str, Any], judge: Mapping[str, Any], stage: str | None) -> str:
    """mini-GenEval by kind, next to what a perfect model would get with this image tokenizer."""
    columns = {
        "drawn": final.get("mini_geneval"),
        "drawn, held out": final.get("mini_geneval_held_out"),
        "ceiling": judge.get("reconstructed"),
        "ceiling, held out": judge.get("reconstructed_held_out"),
        "true scenes": judge.get("true"),
        "wrong prompts": judge.get("shuffled"),
    }
    columns = {k: v for k, v in columns.items() if v}
    if not columns:
        return ""
    kinds = dict.fromkeys(k for part in columns.values() for k in part if k != "mean")
    rows = [[k, *(_both(part, k) for part in columns.values())] for k in [*kinds, "mean"]]
    text = "## Drawing: mini-GenEval\n\n"
    if stage:
        text += f"After {stage}, with guidance {final.get('cfg_weight', 'unknown')}. "
    text += (
        "Each cell: share of pictures that show what the prompt asks for / that show nothing else as "
        "well. Held out: combinations that training never showed. Ceiling: true scenes through the "
        "image tokenizer, so what a perfect model would get. The last columns check the judge itself "
        "on true scenes, with their own prompts and with those of others."
    )
    return f"{text}{_error(final.get('mini_geneval', {}))}\n\n{_table(['kind', *columns], rows)}"


def _guidance(final: Mapping[str, Any]) -> str:
    sweep = final.get("guidance")
    if not sweep:
        return ""
    kinds = [k for k in next(iter(sweep.values())) if k != "mean"]
    rows = []
    for weight, scores in sorted(sweep.items(), key=lambda item: float(item[0])):
        chosen = float(weight) == final.get("cfg_weight")
        cells = [_score(scores, "mean", "plain"), _score(scores, "mean", "strict")]
        cells += [_score(scores, k, "plain") for k in kinds]
        rows.append([f"**{weight}**" if chosen else weight, *cells])
    return (
        "### Guidance\n\nThe weight with the best mean (bold) was chosen on prompts that are not "
        f"scored above.\n\n{_table(['weight', 'mean', 'mean, strict', *kinds], rows)}"
    )


def _questions(final: Mapping[str, Any], stage: str | None) -> str:
    """Accuracy by kind of question, next to always giving the commonest answer; yes/no as POPE does."""
    columns = {"seen": final.get("questions"), "held out": final.get("questions_held_out")}
    columns = {k: v for k, v in columns.items() if v}
    if not columns:
        return ""
    kinds = dict.fromkeys(k for part in columns.values() for k in part if k != "mean")
    fields = ("accuracy", "majority")
    rows = [
        [k, *(_score(part, k, f) for part in columns.values() for f in fields)]
        for k in [*kinds, "mean"]
    ]
    header = ["kind", *(f"{f}, {c}" for c in columns for f in fields)]
    text = (
        f"## Understanding: questions\n\nAfter {stage}, on scenes that training never showed. "
        "Majority: always the commonest right answer."
        f"{_error(final.get('questions', {}))}\n\n{_table(header, rows)}"
    )
    yes_no = {c: part["yes_no"] for c, part in columns.items() if "f1" in part.get("yes_no", {})}
    if yes_no:
        fields = ("precision", "recall", "f1")
        rows = [[c, *(f"{s[f]:.2f}" for f in fields)] for c, s in yes_no.items()]
        text += f'\n\nYes/no questions, of "yes":\n\n{_table(["scenes", *fields], rows)}'
    return text


def _asked(questions: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f'<img src="{q["image"]}" width="96">',
            *(q[k] for k in ("question", "answer", "truth")),
            "yes" if q["right"] else "no",
        ]
        for q in questions
    ]
    header = ["picture", "question", "answer", "truth", "right"]
    return f"### Some questions with their answers\n\n{_table(header, rows)}" if rows else ""


def _error(scores: Mapping[str, Any]) -> str:
    """How far chance alone moves a score of so few pictures: the standard error at one half."""
    counts = [s["count"] for s in scores.values() if s.get("count")]
    if not counts:
        return ""
    count = min(counts)
    return f" {count} of each kind: one standard error is up to {0.5 / count**0.5:.2f}."


def _score(scores: Mapping[str, Any], kind: str, field: str) -> str:
    value = scores.get(kind, {}).get(field)
    return _NO_SCORE if value is None else f"{value:.2f}"


def _both(scores: Mapping[str, Any], kind: str) -> str:
    if kind not in scores:
        return _NO_SCORE
    return f"{_score(scores, kind, 'plain')} / {_score(scores, kind, 'strict')}"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
