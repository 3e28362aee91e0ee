"""From the answers of a run to its numbers: what each is called, and which may stand beside the paper's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.errors import UserError
from janus_jax.evaluation.asking import Task
from janus_jax.evaluation.judges import TextJudge
from janus_jax.evaluation.predictions import ANSWER, FAILED, UNREADABLE
from janus_jax.evaluation.published import Own, published, understanding_average, unlike
from janus_jax.evaluation.tables import MEAN, is_table
from janus_jax.evaluation.understanding import BenchmarkScores, benchmark_facts, score_answers
from janus_jax.evaluation.understanding.parsers import JUDGED, UNREAD
from janus_jax.evaluation.understanding.protocols import Protocol
from janus_jax.untrusted import printable

FORMAT = 1
OWN_PROTOCOL = "paper"
# A file with fewer questions is a part of the benchmark, whatever it is called.
LEAST = {
    "pope": 5000,
    "pope random": 2910,  # of its numbers of that part alone
    "mme": 2374,
    "mmbench": 4000,
    "seed": 14000,
    "gqa": 12500,
    "mmmu": 900,
    "mmvet": 218,
}


@dataclasses.dataclass(frozen=True)
class Number:
    """One number of a run.

    Attributes:
      benchmark: name, as in `published`.
      metric: with what makes it another measure than the benchmark's in brackets, such as "F1 random (100 of
        9000)".
      value: in the unit of the benchmark; None where the answers give none.
      protocol, split: how it was measured, on what; "" where there is one alone.
      headline: whether it stands for the benchmark.
      paper, difference: the paper's number and this one's distance from it, where both mean the same.
      note: why it has no difference, or what is known of the paper's number.
    """

    benchmark: str
    metric: str
    value: float | None
    protocol: str = ""
    split: str = ""
    headline: bool = True
    paper: float | None = None
    difference: float | None = None
    note: str = ""


def number(own: Own, model: str | None, **fields: Any) -> Number:
    """A number under its full name, beside the paper's where it may be.

    Args:
      own: what was measured.
      model: of `published.MODELS`, or None for a model that is not in the paper.
      fields: of `Number`.
    """
    reason = unlike(own)
    metric = f"{own.metric} ({reason})" if reason else own.metric
    if reason:
        return Number(own.benchmark, metric, own.value, note="not the paper's measure", **fields)
    papers = [
        p
        for p in published(model, own.benchmark, of_paper=True)
        if model is not None and p.metric == own.metric
    ]
    if not papers:
        return Number(own.benchmark, metric, own.value, **fields)
    (paper,) = papers
    difference = round(own.value - paper.value, 6)
    return Number(
        own.benchmark,
        metric,
        own.value,
        paper=paper.value,
        difference=difference,
        note=paper.protocol,
        **fields,
    )


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What came of a task.

    Attributes:
      task: it.
      scores: None where not one answer of MM-Vet was graded.
      numbers: the headline first, then those by other conventions.
      missing: questions that were not asked.
      unreadable, failed: index -> why.
      warnings: why the numbers may not be comparable.
    """

    task: Task
    scores: BenchmarkScores | None
    numbers: Sequence[Number]
    missing: int
    unreadable: Mapping[str, str]
    failed: Mapping[str, str]
    warnings: Sequence[str]

    def entry(self) -> dict[str, Any]:
        """JSON-ready, for scores.json."""
        task, protocol = self.task, self.task.protocol
        return {
            "benchmark": protocol.benchmark,
            "title": benchmark_facts(protocol.benchmark).title,
            "protocol": protocol.name,
            "split": protocol.split or "",
            "questions": len(task.items),
            "asked": len(task.indices),
            "missing": self.missing,
            "partial": task.partial,
            "tables": self.scores.tables if self.scores else {},
            "how_answers_were_read": dict(self.scores.counts) if self.scores else {},
            "unreadable": dict(self.unreadable),
            "failed": dict(self.failed),
            "warnings": list(self.warnings),
            "note": protocol.note,
        }


def task_result(
    task: Task,
    done: Mapping[str, tuple[str, str]],
    model: str | None,
    judge: TextJudge | None = None,
    on_judge: Callable[[int, int], None] | None = None,
) -> TaskResult:
    """Scores a task.

    Args:
      task: what was asked.
      done: `Predictions.done` of it. What is not in it is wrong, and counted.
      model: of `published.MODELS`, or None.
      judge: for answers that no rule reads, and for MM-Vet.
      on_judge: called with (answers that the judge was asked about, in all).

    Raises:
      UserError: see `understanding.score_answers`.
    """
    protocol = task.protocol
    asked = set(task.indices)
    of = {
        kind: {i: text for i, (k, text) in done.items() if k == kind and i in asked}
        for kind in (ANSWER, UNREADABLE, FAILED)
    }
    warnings = list(task.items.warnings)
    missing = sum(index not in done for index in task.indices)
    if protocol.parser == "judged" and judge is None:
        warnings.append(
            "MM-Vet is not graded: give --judge, or hand the answers to the official evaluator"
        )
        return TaskResult(task, None, (), missing, of[UNREADABLE], of[FAILED], warnings)
    items = task.items if not task.partial else map(task.items.find, task.indices)
    items = list(items) if judge else items  # a judge goes through them twice
    score = functools.partial(score_answers, items, of[ANSWER], protocol, unreadable=of[UNREADABLE])
    scores = score() if judge is None else judge.score(score, on_judge)
    if judge and (problem := judge.problem()):
        warnings.append(problem)
    if protocol.parser == "judged" and scores.counts.get(UNREAD) and not scores.counts.get(JUDGED):
        warnings.append("MM-Vet is not graded: the judge gave not one grade")
        name = f"{metric_name(protocol)} (not graded)"
        none = Number(protocol.benchmark, name, None, protocol.name, protocol.split or "")
        return TaskResult(task, None, (none,), missing, of[UNREADABLE], of[FAILED], warnings)
    warnings += scores.warnings
    if of[UNREADABLE]:
        first = next(i for i in task.indices if i in of[UNREADABLE])
        warnings.append(
            f"{_questions(len(of[UNREADABLE]), task)} as wrong, as their pictures cannot be read (the first is "
            f"{printable(first, 80)}: {of[UNREADABLE][first]}); the next run looks for them again"
        )
    if of[FAILED]:
        warnings.append(
            f"{_questions(len(of[FAILED]), task)} as wrong, as the model cannot be asked them"
        )
    numbers = _numbers(task, scores, model, judge, missing, len(of[UNREADABLE]))
    return TaskResult(task, scores, numbers, missing, of[UNREADABLE], of[FAILED], warnings)


def metric_name(protocol: Protocol) -> str:
    """What the headline of a protocol is called, as in `published`."""
    found = (name for name, cell in protocol.beside.items() if cell == protocol.headline)
    return next(found, protocol.headline[2])


def figure_average(results: Sequence[TaskResult], model: str | None) -> Number | None:
    """The average of Figure 1, where all its four benchmarks were run whole under the paper's protocol."""
    whole = {
        n.benchmark: n.value
        for result in results
        for n in result.numbers
        if n.headline
        and n.value is not None
        and n.protocol == OWN_PROTOCOL
        and n.metric == metric_name(result.task.protocol)
    }
    try:
        value = understanding_average(whole)
    except UserError:
        return None
    papers = None
    if model is not None:
        of = {p.benchmark: p.value for p in published(model, of_paper=True) if p.benchmark in whole}
        papers = round(understanding_average(of), 6)
    difference = None if papers is None else round(value - papers, 6)
    note = "mean of POPE, MME perception / 20, GQA and MMMU; the paper's from its Table 3"
    return Number(
        "average", "Figure 1", value, OWN_PROTOCOL, paper=papers, difference=difference, note=note
    )


def named_numbers(tables: Mapping[str, Any]) -> list[Number]:
    """One number for each table of a benchmark of the registry: of its row `MEAN`, the first column.

    Args:
      tables: benchmark -> table -> row -> column -> number; a group of tables, or one without means, gives none.
    """
    numbers = []
    for benchmark, found in tables.items():
        for name, table in found.items():
            if is_table(table) and table.get(MEAN):
                column, value = next(iter(table[MEAN].items()))
                numbers.append(Number(benchmark, f"{name}, {MEAN} {column}", value))
    return numbers


def _too_few(task: Task, metric: str) -> str:
    """That the file has fewer questions for a metric than the benchmark; "" where it has enough."""
    name, count = task.protocol.benchmark, len(task.items)
    if name == "pope" and metric.endswith(" random"):
        name = "pope random"
        subsets = task.items.categories.items()
        count = sum(n for subset, n in subsets if "random" in subset.split(","))
    least = LEAST.get(name, 0)
    return f"{count} of at least {least}" if count < least else ""


def _questions(count: int, task: Task) -> str:
    asked = len(task.indices)
    what = "question" if asked == 1 else "questions"
    return f"{count} of {asked} {what} {'counts' if count == 1 else 'count'}"


def _numbers(
    task: Task,
    scores: BenchmarkScores,
    model: str | None,
    judge: TextJudge | None,
    missing: int,
    unreadable: int,
) -> list[Number]:
    protocol = task.protocol
    headline = metric_name(protocol)
    values = {headline: scores.headline}
    values |= {name: value for name, value in scores.beside.items() if name != headline}
    total = len(task.items)
    done = len(task.indices) - missing
    parts = []
    if unreadable:
        parts.append(f"{unreadable} of {len(task.indices)} pictures unreadable")
    graded, ungraded = scores.counts.get(JUDGED, 0), scores.counts.get(UNREAD, 0)
    if protocol.parser == "judged" and ungraded:
        parts.append(f"{graded} of {graded + ungraded} graded")
    others = list(parts)
    if protocol.name != OWN_PROTOCOL:
        others.append(f"protocol {protocol.name}")
    if judge and scores.counts.get(JUDGED):
        others.append(f"judged by {judge.name}")
    numbers = []
    for metric, value in values.items():
        fields = dict(
            protocol=protocol.name, split=protocol.split or "", headline=metric == headline
        )
        # Of a part of the file `unlike` says how many.
        size = _too_few(task, metric) if done == total else ""
        size = [size or task.items.other] if size or task.items.other else []
        if value is None:
            reasons = ", ".join(size + parts)
            partial = unlike(Own(protocol.benchmark, metric, 0.0, done, total, reasons))
            name = f"{metric} ({partial})" if partial else metric
            numbers.append(Number(protocol.benchmark, name, None, **fields))
            continue
        own = Own(protocol.benchmark, metric, value, done, total, ", ".join(size + others))
        numbers.append(number(own, model, **fields))
    return numbers
