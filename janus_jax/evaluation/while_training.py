"""The published benchmarks as entries of `config.eval.benchmarks`, for a model that is being trained.

    config.eval.benchmarks = (
        {"name": "understanding/pope", "path": "POPE.tsv", "limit": 500},
        {"name": "generation/geneval-draw", "out": "drawn", "limit": 60, "samples": 1},
    )

All processes of a job ask and draw alike; files are written and judges are asked by the first one alone.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from janus_jax import places
from janus_jax.errors import RunError, UserError
from janus_jax.evaluation.asking import Line, Task, ask, check_pictures, make_task
from janus_jax.evaluation.benchmark import ANSWER, DRAW, Benchmark, Scores
from janus_jax.evaluation.generation import (
    draw,
    geneval_prompts,
    judge_pictures,
    load_function,
    score_results,
)
from janus_jax.evaluation.generation.detectors import detector_name
from janus_jax.evaluation.judges import TextJudge, check_judge, find_complete
from janus_jax.evaluation.results import task_result
from janus_jax.evaluation.understanding import Items, Protocol, get_protocol, open_benchmark
from janus_jax.untrusted import printable

BETWEEN_STAGES = 500  # questions at most


@dataclasses.dataclass(frozen=True)
class Understanding(Benchmark):
    """Questions of a published benchmark; its tables have protocol and number of questions in their names.

    Attributes:
      path: of its file, or of several; see `understanding.open_benchmark`.
      protocol: paper, vlmevalkit or lmms-eval.
      limit: questions, at random but always the same; None: all. Between stages at most 500.
      images: directory of the pictures that the files name.
      batch_size: questions at once.
      judge: a language model for MM-Vet and for what no rule reads; see `judges.find_complete`.
    """

    benchmark: ClassVar[str]
    needs = ANSWER

    path: str | Sequence[str] = ()
    protocol: str = "paper"
    limit: int | None = None
    images: str | None = None
    batch_size: int = 64
    judge: str | None = None

    def __post_init__(self):
        if not self.path:
            raise UserError(f"{self.name} needs the path of its file: give path")
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise UserError(
                f"batch_size must be a whole number from 1, not {printable(self.batch_size)}"
            )
        if self.benchmark == "mmvet" and self.judge is None:
            raise UserError("MM-Vet's answers are graded by a language model: give judge")
        if self.judge is not None:
            check_judge(self.judge, forms="")
        if self.judge is not None and "://" not in self.judge:
            load_function(self.judge, "judge")
        # The files are looked at before the training, not after it.
        check_pictures(self.task(), "images")

    def task(self) -> Task:
        """What is asked."""
        rules = get_protocol(self.protocol, self.benchmark)
        paths = (self.path,) if isinstance(self.path, str) else tuple(self.path)
        items = _opened(self.benchmark, paths, self.images, rules.split)
        return make_task(items, rules, self.limit)

    def run(self, predictor: Any) -> Scores:
        from janus_jax.parallel import first_only

        task, done = self.task(), {}

        def add(lines: list[Line]) -> None:
            for line in lines:
                kind = next(name for name in line if name not in ("protocol", "benchmark", "index"))
                done[line["index"]] = (kind, line[kind])

        ask(predictor, task, {}, self.batch_size, add, _must_be_those_of_the_first)
        return first_only(lambda: self._tables(task, done))

    def shortened(self) -> Benchmark:
        limit = min(self.limit or BETWEEN_STAGES, BETWEEN_STAGES)
        return dataclasses.replace(self, limit=limit)

    def _tables(self, task: Task, done: dict[str, tuple[str, str]]) -> Scores:
        judge, problem = None, ""
        if self.judge is not None:
            try:
                judge = TextJudge(find_complete(self.judge))
            except UserError as error:  # hours of training do not end for it, nor do other scores
                problem = str(error)
        result = task_result(task, done, None, judge)
        problem = problem or (judge.problem() if judge else "")
        named = _name_of(task.protocol, task, len(result.unreadable))
        if result.scores is None:
            _warn(f"{self.name} is not graded: {problem}")
            row = {"score": None, "questions": len(task.indices)}
            return {f"{self.benchmark}, not graded, {named}": {"total": row}}
        if problem:
            _warn(f"{self.name} is scored without some of its judge's answers: {problem}")
            named += ", without its judge" if judge is None else f", {judge.failed} not judged"
        return {
            f"{name}, {named}": {row: _numbers(cells) for row, cells in table.items()}
            for name, table in result.scores.tables.items()
        }


class Pope(Understanding):
    name, benchmark = "understanding/pope", "pope"


class Mme(Understanding):
    name, benchmark = "understanding/mme", "mme"


class MmBench(Understanding):
    name, benchmark = "understanding/mmbench", "mmbench"


class Seed(Understanding):
    name, benchmark = "understanding/seed", "seed"


class Gqa(Understanding):
    name, benchmark = "understanding/gqa", "gqa"


class Mmmu(Understanding):
    name, benchmark = "understanding/mmmu", "mmmu"


class MmVet(Understanding):
    name, benchmark = "understanding/mmvet", "mmvet"


@dataclasses.dataclass(frozen=True)
class GenEvalDraw(Benchmark):
    """Draws GenEval's prompts into a folder for its scorer, and scores them where a detector is given.

    Attributes:
      out: directory; each time that it is run, pictures go to the first free of OUT/000, OUT/001, ...
      limit: prompts, spread evenly; None: all 553.
      samples: pictures of each.
      cfg_weight, temperature, seed: of the drawing.
      batch_size: prompts at once.
      detector: "module:function"; see `generation.Detector`. Scores carry its name.
    """

    name = "generation/geneval-draw"
    needs = DRAW

    out: str = ""
    limit: int | None = None
    samples: int = 4
    cfg_weight: float = 5.0
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16
    detector: str | None = None

    def __post_init__(self):
        if not self.out:
            raise UserError(f"{self.name} needs a directory for its pictures: give out")
        geneval_prompts().spread(self.limit)
        for option in ("samples", "batch_size"):
            value = getattr(self, option)
            if type(value) is not int or value < 1:
                raise UserError(f"{option} must be a whole number from 1, not {printable(value)}")
        places.check_local(self.out, "out")
        places.check_directory(self.out, "out")

    def run(self, predictor: Any) -> Scores:
        from janus_jax.parallel import first_only, is_first

        number = first_only(lambda: _first_free(Path(self.out)))
        prompts = geneval_prompts().spread(self.limit)
        with tempfile.TemporaryDirectory() as aside:
            # All folders are empty, so all processes draw the same in the same order.
            folder = Path(self.out, f"{number:03d}") if is_first() else Path(aside, "drawn")
            drawn = draw(
                predictor,
                prompts,
                folder,
                self.samples,
                self.cfg_weight,
                self.temperature,
                self.seed,
                batch=self.batch_size,
            )
            return first_only(lambda: self._table(folder, drawn.pictures))

    def _table(self, folder: Path, pictures: int) -> Scores:
        if self.detector is None:
            return {f"geneval, drawn into {folder.name}": {"all": {"pictures": pictures}}}
        detector = load_function(self.detector, "detector")
        found = score_results(judge_pictures(detector, folder, folder / "results.jsonl"))
        reason = f" ({found.incomplete})" if found.incomplete else ""
        return {f"geneval, judged by {detector_name(detector)}{reason}": found.table()}


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _name_of(protocol: Protocol, task: Task, unreadable: int) -> str:
    part = f", {len(task.indices)} of {len(task.items)}" if task.partial else ""
    bad = f", {unreadable} of {len(task.indices)} pictures unreadable" if unreadable else ""
    return f"protocol {protocol.name}{part}{bad}"


def _numbers(cells: dict[str, float | None]) -> dict[str, float | None]:
    """Not "count", by which reports say how far chance moves a share: these are percent, or points."""
    return {"questions" if name == "count" else name: value for name, value in cells.items()}


@functools.lru_cache(maxsize=32)
def _opened(benchmark: str, paths: tuple[str, ...], images: str | None, split: str | None) -> Items:
    return open_benchmark(benchmark, paths, images, split)


def _must_be_those_of_the_first(unreadable: list[str]) -> None:
    """Raises RunError where this process cannot read other pictures than the first one: all must ask alike."""
    from janus_jax.parallel import first_only

    if (first := first_only(lambda: unreadable)) != unreadable:
        other = sorted(set(first) ^ set(unreadable))[0]
        raise RunError(
            f"the picture of question {printable(other)} can be read by one process and not by another: put "
            "the files of benchmarks where all find them"
        )


def _first_free(directory: Path) -> int:
    number = 0
    while (directory / f"{number:03d}").exists():
        number += 1
    return number
