"""A run of benchmarks in a directory: asked where a kill ended it, scored, written as tables and a page.

    tasks = [make_task(open_benchmark("pope", "POPE.tsv"), get_protocol("paper", "pope"))]
    outcome = run(ModelPredictor(janus), tasks, "results/mine", {"checkpoint": "models/mine"})
    print(as_text(numbers_grid(outcome.numbers, None)))

The directory gets run.json (what the answers depend on), predictions.jsonl (an answer a line), named.json (tables
of benchmarks of the registry), scores.json, table.md and index.html.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax import places, untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.asking import Line, Task, ask, check_pictures
from janus_jax.evaluation.benchmark import Benchmark, run_benchmarks
from janus_jax.evaluation.failures import pick_failures
from janus_jax.evaluation.judges import Complete, TextJudge
from janus_jax.evaluation.number_tables import (
    SCORES,
    as_markdown,
    named_grid,
    numbers_grid,
    scores_json,
)
from janus_jax.evaluation.page import page
from janus_jax.evaluation.predictions import ANSWER, UNREADABLE, Predictions
from janus_jax.evaluation.results import (
    Number,
    TaskResult,
    figure_average,
    named_numbers,
    task_result,
)
from janus_jax.evaluation.settings import RUN_FILE, keep_settings
from janus_jax.evaluation.understanding import write_official_predictions
from janus_jax.files import atomic_write, read_json, write_json

PREDICTIONS, NAMED, JUDGED, TABLE, PAGE = (
    "predictions.jsonl",
    "named.json",
    "judged.jsonl",
    "table.md",
    "index.html",
)
OFFICIAL_MMVET = "mmvet_{protocol}.json"


@dataclasses.dataclass(frozen=True)
class Named:
    """A benchmark of the registry that a run has.

    Attributes:
      entry: its name and options.
      benchmark: made of them.
      sampling: of its pictures, such as {"cfg_weight": 2.0}.
    """

    entry: Mapping[str, Any]
    benchmark: Benchmark
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
      numbers: of all benchmarks.
      results: of each task.
      named: benchmark of the registry -> its tables.
      asked: questions that were answered in this call.
      complete: whether none is missing.
    """

    numbers: Sequence[Number]
    results: Sequence[TaskResult]
    named: Mapping[str, Any]
    asked: int
    complete: bool


# (questions that are done, questions in all, name of the task)
Progress = Callable[[int, int, str], None]


def run(
    predictor: Any,
    tasks: Sequence[Task],
    out: str | Path,
    model: Mapping[str, Any],
    *,
    data: Mapping[str, Any] | None = None,
    paper_model: str | None = None,
    named: Sequence[Named] = (),
    named_predictor: Any = None,
    batch_size: int = 16,
    complete: Complete | None = None,
    judge_name: str = "",
    progress: Progress | None = None,
    on_judge: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Asks what was not asked yet, scores everything, and writes the files of the directory.

    Args:
      predictor: see `asking.Asked`.
      tasks: no two of the same benchmark and protocol.
      out: made if need be.
      model: what the answers depend on (`settings.model_settings`).
      data: name of a task -> what its answers depend on, such as a fingerprint of its files.
      paper_model: of `published.MODELS`, whose numbers may stand beside.
      named: benchmarks of the registry.
      named_predictor: a `ModelPredictor` for `named`; by default `predictor`.
      batch_size: questions at once.
      complete: a language model as a judge, called `judge_name`; see `judges.TextJudge`.
      progress: called at the start and after each batch.
      on_judge: called with (answers that the judge was asked about, in all) for each task.

    Raises:
      UserError: the directory cannot be written, has answers of other settings, or is in use; no picture of a
        benchmark can be read; the model cannot be asked; see also `understanding.score_answers`.
    """
    out = Path(out)
    names = [task.name for task in tasks] + [str(n.entry["name"]) for n in named]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{untrusted.printable(twice)} is there twice: name each benchmark once")
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"a batch must have 1 question or more, not {batch_size!r}")
    files = [RUN_FILE, PREDICTIONS, NAMED, JUDGED, SCORES, TABLE, PAGE]
    places.check_directory(out, "--out", files)
    places.make_directory(out)
    benchmarks = {
        task.name: {"split": task.protocol.split, **(data or {}).get(task.name, {})}
        for task in tasks
    }
    benchmarks |= {n.entry["name"]: {**n.entry, "sampling": dict(n.sampling)} for n in named}
    # As files hold them, so that tuples and lists compare alike.
    settings = json.loads(json.dumps({"model": dict(model), "benchmarks": benchmarks}))
    keep_settings(out, settings)
    with Predictions(out / PREDICTIONS) as predictions:
        asked = _ask_all(predictor, tasks, predictions, batch_size, progress)
        tables = _run_named(named_predictor or predictor, named, out / NAMED)
        results = []
        for task in tasks:
            # One a task, as it counts what it could not answer.
            judge = TextJudge(complete, out / JUDGED, name=judge_name) if complete else None
            done = predictions.done(*task.name.split("/"))
            results.append(task_result(task, done, paper_model, judge, on_judge))
    numbers = [n for result in results for n in result.numbers]
    average = figure_average(results, paper_model)
    numbers += [average] if average else []
    numbers += named_numbers(tables)
    whole = not any(result.missing for result in results)
    about = {**settings["model"], "paper_model": paper_model}
    if judge_name:
        about["judge"] = judge_name
    entries = {result.task.name: result.entry() for result in results}
    write_json(out / SCORES, scores_json(about, numbers, entries, whole, tables))
    _write_table(out / TABLE, about, numbers, results, tables)
    failures = pick_failures(results)
    atomic_write(out / PAGE, page(about, numbers, results, failures, tables, whole))
    for task in tasks:
        if task.protocol.benchmark == "mmvet":
            _write_mmvet(out, task, predictions)
    return Outcome(numbers, results, tables, asked, whole)


def _ask_all(
    predictor: Any,
    tasks: Sequence[Task],
    predictions: Predictions,
    batch_size: int,
    progress: Progress | None,
) -> int:
    """Asks what is missing; returns how many questions that were.

    Raises:
      UserError: a benchmark of which nothing is answered has no picture that can be read.
    """
    total = sum(len(task.indices) for task in tasks)
    done_of = {task.name: predictions.done(*task.name.split("/")) for task in tasks}
    for task in tasks:
        done = done_of[task.name]
        if not any(kind == ANSWER for kind, _ in done.values()):
            check_pictures(task, "--images", [i for i in task.indices if i not in done])
    asked = 0
    count = sum(i in done_of[task.name] for task in tasks for i in task.indices)

    for task in tasks:
        done = done_of[task.name]
        if all(index in done for index in task.indices):
            continue
        if progress:
            progress(count, total, task.name)

        def add(lines: list[Line], name: str = task.name) -> None:
            nonlocal count, asked
            predictions.add(lines)
            count += len(lines)
            asked += sum(UNREADABLE not in line for line in lines)
            if progress:
                progress(count, total, name)

        ask(predictor, task, dict(done), batch_size, add)
    return asked


def _run_named(predictor: Any, named: Sequence[Named], path: Path) -> dict[str, Any]:
    """Name -> tables; each is kept once it is there, and not run again."""
    kept = read_json(path, dict, "remove it") if untrusted.is_file(path) else {}
    found = {}
    for one in named:
        name = one.entry["name"]
        if name not in kept:
            of = predictor.drawing_with(**one.sampling) if one.sampling else predictor
            kept[name] = run_benchmarks([one.benchmark], of)
            write_json(path, kept)
        found[name] = kept[name]
    return found


def _write_table(
    path: Path,
    model: Mapping[str, Any],
    numbers: Sequence[Number],
    results: Sequence[TaskResult],
    tables: Mapping[str, Any],
) -> None:
    parts = [f"# Benchmarks of {untrusted.printable(model.get('checkpoint', ''), 200)}\n"]
    if numbers:
        parts.append(as_markdown(numbers_grid(numbers, model.get("paper_model"))))
    if tables:
        parts.append(as_markdown(named_grid(tables)))
    notes = [f"- {r.task.name}: {r.task.protocol.note}" for r in results if r.task.protocol.note]
    notes += [
        f"- {r.task.name}: {untrusted.printable(w, 400)}" for r in results for w in r.warnings
    ]
    parts += ["\n".join(notes) + "\n"] if notes else []
    atomic_write(path, "\n".join(parts).encode("utf-8", "replace"))


def _write_mmvet(out: Path, task: Task, predictions: Predictions) -> None:
    """The answers as the official evaluator of MM-Vet takes them."""
    done = predictions.done(*task.name.split("/"))
    asked = set(task.indices)
    answers = {i: text for i, (kind, text) in done.items() if kind == ANSWER and i in asked}
    items = map(task.items.find, task.indices)
    name = OFFICIAL_MMVET.format(protocol=task.protocol.name)
    write_official_predictions(out / name, items, answers)
