"""What a benchmark is, what it asks of a model, and how several are run.

A benchmark knows neither the model nor how it samples: it asks a `Predictor` for pictures, answers or
reconstructions and returns tables of numbers. How a model becomes a predictor is in `predictor.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from janus_jax.errors import UserError
from janus_jax.evaluation.tables import BenchmarkReport, Table

# What a benchmark may need of a predictor, by the name of the method.
DRAW, ANSWER, RECONSTRUCT = ("draw", "answer", "reconstruct")

# Name of a table -> row -> column -> number; or name of a group -> name of a table -> ...
Scores = dict[str, Any]


class Predictor(Protocol):
    """A model as a benchmark sees it. `sampling` overrides the predictor's own settings."""

    def draw(self, prompts: Sequence[str], **sampling: Any) -> np.ndarray:
        """One picture a prompt, uint8 [len(prompts), h, w, 3]."""
        ...

    def answer(
        self, images: Sequence[np.ndarray], questions: Sequence[str], **sampling: Any
    ) -> list[str]:
        """The answer to question i about picture i, uint8 [h, w, 3]."""
        ...

    def reconstruct(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures uint8 [B, h, w, 3] through the image tokenizer and back."""
        ...


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a benchmark chooses the weight of guidance before it is run.

    Attributes:
      benchmark: asks other prompts than those that are scored, and returns one table.
      cfg_weights: to choose from.
      quality: of that table; the weight with the largest is taken, the first of equals.
    """

    benchmark: Benchmark
    cfg_weights: tuple[float, ...]
    quality: Callable[[Table], float]


@dataclasses.dataclass(frozen=True)
class GalleryItem:
    """A question with its answer, for people to look at; `name` is that of the picture's file."""

    name: str
    picture: np.ndarray
    question: str
    answer: str
    truth: str
    right: bool


class Benchmark(Protocol):
    """Something a model can be scored by. Subclass it: all but `name`, `needs` and `run` has a default.

    Attributes:
      name: as in the registry.
      needs: method of the predictor that `run` uses; a stage that does not train it is not scored.
      report: how its tables are shown; without it they are shown as they are.
    """

    name: str
    needs: str
    report: BenchmarkReport | None = None

    def run(self, predictor: Predictor) -> Scores:
        """Scores a model. The names of the tables are this benchmark's own: no other may use them."""
        ...

    @property
    def scored(self) -> bool:
        """False for one that is there for its previews alone."""
        return True

    def shortened(self) -> Benchmark:
        """The cheaper version that is run between stages."""
        return self

    def tuning(self) -> Tuning | None:
        """How guidance is chosen before the last stage is scored; None takes the checkpoint's own."""
        return None

    def preview_prompts(self, stage: Any) -> list[str]:
        """Prompts of the grids that are drawn while `stage` trains; may depend on what it trains on."""
        return []

    def preview_pictures(self) -> np.ndarray | None:
        """Pictures uint8 [N, h, w, 3] that are shown next to their reconstructions."""
        return None

    def gallery(self, predictor: Predictor) -> list[GalleryItem]:
        """Some questions with their answers."""
        return []


def run_benchmarks(benchmarks: Iterable[Benchmark], predictor: Predictor) -> Scores:
    """Runs benchmarks one after the other and returns the tables of all.

    Raises:
      UserError: two of them have a table of the same name, or one returns something other than tables.
    """
    scores: Scores = {}
    for benchmark in benchmarks:
        found = _tables(benchmark.name, benchmark.run(predictor))
        if shared := sorted(scores.keys() & found.keys()):
            raise UserError(
                f"benchmark {benchmark.name}: another one has a table {shared[0]!r}, too; name each "
                "benchmark once in config.eval.benchmarks"
            )
        scores |= found
    return scores


def _tables(name: str, found: Any) -> Scores:
    """What a benchmark returned, with numbers of Python, as files hold them.

    Raises:
      UserError: it is not table -> row -> column -> number, or group -> table -> row -> column -> number.
    """
    tables, depths = _numbers(found)
    if not isinstance(found, Mapping) or not depths <= {3, 4}:
        raise UserError(
            f"benchmark {name}: run must return {{table: {{row: {{column: number}}}}}}, not {found!r:.100}"
        )
    return tables


def _numbers(found: Any) -> tuple[Any, set[int]]:
    """(`found` with numbers of Python, how deep they lie); {-1} where there is anything else."""
    if isinstance(found, Mapping):
        parts = {str(key): _numbers(value) for key, value in found.items()}
        depths = {depth + 1 if depth >= 0 else -1 for _, part in parts.values() for depth in part}
        return {key: part for key, (part, _) in parts.items()}, depths
    if getattr(found, "shape", None) == ():
        found = found.item()
    return found, {0 if found is None or isinstance(found, int | float) else -1}


def choose_cfg_weight(
    tuning: Tuning, predictor_at: Callable[[float], Predictor]
) -> tuple[float, dict[str, Table]]:
    """Runs a benchmark at several weights of guidance.

    Args:
      tuning: the benchmark, the weights, and what makes one better than another.
      predictor_at: weight -> a predictor that draws with it.

    Returns:
      (the best weight, weight as text -> its table).
    """
    tables: dict[str, Table] = {}
    for weight in tuning.cfg_weights:
        (tables[str(weight)],) = tuning.benchmark.run(predictor_at(weight)).values()
    best = max(tuning.cfg_weights, key=lambda weight: tuning.quality(tables[str(weight)]))
    return float(best), tables


def check_count(name: str, value: Any) -> None:
    """Raises UserError for a number of prompts or questions that is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{name} must be a finite number >= 0, not {value!r}")


def check_weights(name: str, values: Any) -> None:
    """Raises UserError for weights of guidance that are none."""
    if not isinstance(values, list | tuple):
        raise UserError(f"{name} must be a tuple of numbers, not {values!r}")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not np.isfinite(value) or value < 0:
            raise UserError(f"{name} must be a finite number >= 0, not {value!r}")
