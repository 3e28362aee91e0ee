"""The page of a run: one HTML file that needs no other, and runs nothing.

Whatever comes from data, a model or a judge goes through `text`, so that no answer is markup, steers anything, or
turns the direction of what follows it.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from janus_jax.console import printable
from janus_jax.evaluation.failures import Failure
from janus_jax.evaluation.number_tables import named_grid, numbers_grid
from janus_jax.evaluation.results import Number, TaskResult
from janus_jax.evaluation.tables import NO_SCORE, Grid, Table
from janus_jax.evaluation.understanding import benchmark_facts

_LISTED = 100  # questions without an answer that a page lists
_LETTERS = 700  # of one text
_COUNTS = {"count", "pairs", "subtasks"}
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--bad:#ff7b72}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{margin-top:2em;border-top:1px solid var(--line);padding-top:1em}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid var(--line);
text-align:left;vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.scroll{overflow-x:auto}.warning{border-left:4px solid #bf8700;padding:.3em .8em;background:var(--soft)}
.soft{opacity:.7}.bar{width:12em}.bar i{display:block;height:.8em;background:#4078c0}
.failures{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:.8em}
.failure{border:1px solid var(--line);border-radius:6px;padding:.6em .8em;overflow-wrap:anywhere}
.failure img{max-width:100%;max-height:200px;margin:0 .4em .4em 0;vertical-align:top;image-rendering:auto}
.failure p{margin:.15em 0;white-space:pre-wrap;unicode-bidi:isolate}.failure .answer{color:var(--bad)}
.details{unicode-bidi:isolate;overflow-wrap:anywhere}
"""


def text(value: object, limit: int = _LETTERS) -> str:
    """Text of unknown origin as HTML: escaped, its control characters written out, cut to `limit` letters."""
    whole = str(value)
    shown = escape(printable(whole[:limit], keep="\n\t"))
    if len(whole) > limit:
        shown += f'<span class="soft"> ... ({len(whole):,} letters)</span>'
    return shown


def page(
    model: Mapping[str, Any],
    numbers: Sequence[Number],
    results: Sequence[TaskResult],
    failures: Sequence[Failure],
    named: Mapping[str, Any],
    complete: bool,
) -> str:
    """The whole page; the arguments are those of `number_tables.scores_json`, and what was wrong."""
    made = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    title = f"Benchmarks of {model.get('checkpoint', 'a model')}"
    facts = ", ".join(f"{k} {v}" for k, v in model.items() if k != "checkpoint" and v)
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{text(title, 200)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{text(title, 300)}</h1><p class="soft">{made}<br>{text(facts, 500)}</p>',
    ]
    if not complete:
        parts.append(
            '<p class="warning">Questions are missing: they count as wrong. Run the same command '
            "again to go on.</p>"
        )
    if numbers:
        parts.append(_grid(numbers_grid(numbers, model.get("paper_model")), 4))
    parts += [_task(result) for result in results]
    if named:
        parts += ["<h2>Benchmarks of the registry</h2>", _grid(named_grid(named), 99)]
    if failures:
        parts += [
            f"<h2>Wrong answers</h2><p>{len(failures)} of all, of each benchmark and category.</p>"
        ]
        parts += ['<div class="failures">', *map(_failure, failures), "</div>"]
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _task(result: TaskResult) -> str:
    task, protocol = result.task, result.task.protocol
    title = benchmark_facts(protocol.benchmark).title
    of = f"{len(task.indices):,} of {len(task.items):,}" if task.partial else f"{len(task.items):,}"
    lines = [
        f"<h2>{text(title)} <small class='soft'>protocol {text(protocol.name)}</small></h2>",
        f"<p>{of} questions"
        + (f", split {text(protocol.split)}" if protocol.split else "")
        + ".</p>",
    ]
    if protocol.note:
        lines.append(f'<p class="soft">Of the protocol: {text(protocol.note)}.</p>')
    lines += [f'<p class="warning">{text(warning, 400)}</p>' for warning in result.warnings]
    if result.scores:
        for name, table in result.scores.tables.items():
            lines += [f"<h3>{text(name)}</h3>", _bars(table)]
        counts = ", ".join(f"{how} {n:,}" for how, n in result.scores.counts.items())
        lines.append(f"<p>Answers: {text(counts)}.</p>")
    for heading, of_kind in (
        ("Pictures that cannot be read", result.unreadable),
        ("Questions that the model cannot be asked", result.failed),
    ):
        if of_kind:
            rows = [[index, why] for index, why in list(of_kind.items())[:_LISTED]]
            more = f" (the first {_LISTED} of {len(of_kind):,})" if len(of_kind) > _LISTED else ""
            lines += [f"<h3>{heading}{more}</h3>", _grid(Grid(["question", "why"], rows), 99)]
    return "\n".join(lines)


def _bars(table: Table) -> str:
    """A table with a bar beside each row, of its first number that is no count."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    first = next((c for c in columns if c not in _COUNTS), None)
    values = [row.get(first) or 0.0 for row in table.values()] if first else []
    largest = max([100.0, *values])
    head = "<th></th>" + "".join(f'<th class="n">{text(c)}</th>' for c in columns) + "<th></th>"
    rows = []
    for name, row in table.items():
        cells = "".join(
            f'<td class="n">{_number(column, row.get(column))}</td>' for column in columns
        )
        value = row.get(first) if first else None
        bar = "" if value is None else f'<i style="width:{100 * max(value, 0) / largest:.1f}%"></i>'
        rows.append(
            f'<tr><td class="details">{text(name, 200)}</td>{cells}<td class="bar">{bar}</td></tr>'
        )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _number(column: str, value: float | None) -> str:
    if value is None:
        return NO_SCORE
    return f"{value:,.0f}" if column in _COUNTS else f"{value:.2f}"


def _grid(grid: Grid, numbers_from: int) -> str:
    """A table whose columns from `numbers_from` are numbers."""

    def row(cells: Sequence[Any], tag: str) -> str:
        return "".join(
            f'<{tag} class="{"n" if i >= numbers_from else "details"}">{text(cell, 400)}</{tag}>'
            for i, cell in enumerate(cells)
        )

    lines = [f"<tr>{row(grid.header, 'th')}</tr>", *(f"<tr>{row(r, 'td')}</tr>" for r in grid.rows)]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _failure(failure: Failure) -> str:
    verdict = failure.verdict
    where = " · ".join(x for x in (failure.task, verdict.category, verdict.index) if x)
    said = f" (read as {verdict.said})" if verdict.said not in ("", verdict.answer) else ""
    lines = [f'<div class="failure"><p class="soft">{text(where, 300)}</p>']
    lines += [f'<img src="{uri}" alt="picture {i}">' for i, uri in enumerate(failure.pictures, 1)]
    lines.append(f"<p>{text(failure.question.strip())}</p>")
    if failure.problem:
        lines.append(f'<p class="answer">{text(failure.problem, 300)}</p>')
    else:
        answer = "no answer" if verdict.answer is None else verdict.answer or "(an empty answer)"
        lines.append(f'<p class="answer">{text(answer)}<span class="soft">{text(said)}</span></p>')
        if verdict.how != "read":
            lines.append(f'<p class="soft">{text(verdict.how)}</p>')
    return "\n".join([*lines, f"<p>right: {text(verdict.truth)}</p></div>"])
