"""scores.json, and its numbers as a table for a terminal, for Markdown, and of several runs side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.published import MODELS, PUBLISHED
from janus_jax.evaluation.results import FORMAT, Number
from janus_jax.evaluation.tables import NO_SCORE, Grid
from janus_jax.files import read_json

SCORES = "scores.json"
_WIDEST = 72  # letters of a cell in a terminal


def scores_json(
    model: Mapping[str, Any],
    numbers: Sequence[Number],
    benchmarks: Mapping[str, Any],
    complete: bool,
    named: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What scores.json holds.

    Args:
      model: `settings.model_settings`, and "paper_model", the model of the paper with its architecture, or None.
      numbers: each with its protocol and split.
      benchmarks: "PROTOCOL/BENCHMARK" -> details.
      complete: whether every question was asked that should be.
      named: benchmark of the registry -> its tables.
    """
    return {
        "format": FORMAT,
        "model": dict(model),
        "complete": complete,
        "numbers": [dataclasses.asdict(number) for number in numbers],
        "benchmarks": dict(benchmarks),
        "tables": dict(named or {}),
    }


def read_scores(directory: str | Path) -> dict[str, Any]:
    """scores.json of a directory, its numbers as `Number`s.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = Path(directory, SCORES)
    if not untrusted.is_file(path):
        raise UserError(
            f"{untrusted.printable(directory, 200)} has no {SCORES}: it must be the --out of a run"
        )
    found = read_json(path, dict, "run the benchmark again")
    names = {field.name for field in dataclasses.fields(Number)}
    with untrusted.understanding(path):
        if found.get("format") != FORMAT:
            raise UserError(
                f"{untrusted.printable(path, 200)} is no file of this command (a training run has one, too)"
            )
        numbers = []
        for fields in found["numbers"]:
            one = Number(**{name: value for name, value in fields.items() if name in names})
            for value in (one.value, one.paper, one.difference):
                if value is not None:
                    float(value)
            numbers.append(one)
        found["numbers"] = numbers
        if not isinstance(found["model"], dict):
            raise UserError(
                f"{untrusted.printable(path, 200)} is damaged: it does not say which model"
            )
    return found


def shown_value(benchmark: str, value: float | None, signed: bool = False) -> str:
    """A number as papers print it: GenEval's shares and the like with more places than points of MME."""
    if value is None:
        return NO_SCORE
    places = {"mme": 1, "geneval": 3}.get(benchmark, 3 if "/" in benchmark else 2)
    return f"{value:{'+' if signed else ''}.{places}f}"


def numbers_grid(numbers: Sequence[Number], model: str | None) -> Grid:
    """A row a number: benchmark, metric, protocol, split, value, the paper's, the difference."""
    header = ["benchmark", "metric", "protocol", "split", "score"]
    header += [f"paper, {model}", "difference"] if model else []
    rows = []
    for n in numbers:
        row = [n.benchmark, n.metric if n.headline else f"  {n.metric}", n.protocol, n.split or "-"]
        row.append(shown_value(n.benchmark, n.value))
        if model:
            row += [shown_value(n.benchmark, n.paper), shown_value(n.benchmark, n.difference, True)]
        rows.append(row)
    return Grid(header, rows)


def runs_grid(runs: Mapping[str, Sequence[Number]]) -> Grid:
    """Rows of metrics, columns of runs, beside those of the paper where a metric means the paper's."""
    keys = list(
        dict.fromkeys(
            (n.benchmark, n.metric, n.protocol, n.split) for found in runs.values() for n in found
        )
    )
    papers = {(p.model, p.benchmark, p.metric): p.value for p in PUBLISHED if p.of_paper}
    rows = []
    for benchmark, metric, protocol, split in keys:
        row: list[str] = [benchmark, metric, protocol, split or "-"]
        for found in runs.values():
            own = next(
                (
                    n.value
                    for n in found
                    if (n.benchmark, n.metric, n.protocol, n.split)
                    == (benchmark, metric, protocol, split)
                ),
                None,
            )
            row.append(shown_value(benchmark, own))
        row += [shown_value(benchmark, papers.get((m, benchmark, metric))) for m in MODELS]
        rows.append(row)
    header = ["benchmark", "metric", "protocol", "split", *runs]
    return Grid([*header, *(f"paper, {model}" for model in MODELS)], rows)


def named_grid(tables: Mapping[str, Any]) -> Grid:
    """Every table of benchmarks of the registry in one: table, row, column, number."""
    rows = []
    for benchmark, found in tables.items():
        for name, table in found.items():
            for row, cells in table.items():
                if all(isinstance(cell, Mapping) for cell in cells.values()):
                    rows += [
                        [benchmark, f"{name}, {row}", inner, _cells(values)]
                        for inner, values in cells.items()
                    ]
                else:
                    rows.append([benchmark, name, row, _cells(cells)])
    return Grid(["benchmark", "table", "row", "numbers"], rows)


def as_text(grid: Grid) -> str:
    """A grid for a terminal; nothing in it steers that."""
    cells = [[untrusted.printable(c, _WIDEST) for c in row] for row in (grid.header, *grid.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def as_markdown(grid: Grid) -> str:
    """A grid as a table of Markdown."""
    lines = [_markdown_row(grid.header), "|" + "---|" * len(grid.header)]
    return "\n".join([*lines, *map(_markdown_row, grid.rows)]) + "\n"


def _markdown_row(cells: Sequence[Any]) -> str:
    clean = (untrusted.printable(cell, 200).strip() for cell in cells)
    escaped = (c.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for c in clean)
    return f"| {' | '.join(escaped)} |"


def _cells(values: Mapping[str, float | None]) -> str:
    shown = (f"{n} {NO_SCORE if v is None else format(v, '.4g')}" for n, v in values.items())
    return ", ".join(shown)
