"""What a run looks at while it trains: sample grids, and which benchmarks are scored after which stage."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.evaluation import (
    ANSWER,
    DRAW,
    RECONSTRUCT,
    Benchmark,
    Tuning,
    choose_cfg_weight,
    run_benchmarks,
)
from janus_jax.models import Params
from janus_jax.parallel import first_only
from janus_jax.run.experiment import Experiment
from janus_jax.run.predictors import Predictors
from janus_jax.run.samples import write_gallery, write_grid
from janus_jax.run.scores import ScoreStore, is_scored
from janus_jax.run.watch_list import Given
from janus_jax.run.watching import Watching
from janus_jax.training import Stage, Stopped, handed_on

RECONSTRUCTED_COLUMNS = 8  # of the grids

StopFn = Callable[[], signal.Signals | None]


def abilities(stage: Stage) -> frozenset[str]:
    """What a model can do after a stage, as benchmarks name it (`Benchmark.needs`)."""
    if stage.objective == "vq":
        return frozenset({RECONSTRUCT})
    if not stage.packed:
        return frozenset()
    und, _, gen = stage.ratio
    return frozenset([*([ANSWER] if und > 0 else []), *([DRAW] if gen > 0 else [])])


def scored_after(experiment: Experiment, stage: Stage, last: bool) -> bool:
    """Whether benchmarks are run after a stage; of the image tokenizer at once, as later stages freeze it."""
    return (
        last
        or bool(experiment.config.eval.after_stages)
        or abilities(stage) == frozenset({RECONSTRUCT})
    )


class Evaluator:
    """Draws and scores with the parameters it is given; keeps what is compiled.

    In a job of several processes all of them draw, and the first one writes.

    Args:
      experiment: the run's objects; its benchmarks say what is drawn and asked.
      run_dir: where samples/ and scores.json go.
      stop: asked before every batch of scoring, in all processes; a signal raises `Stopped`.
      given: what the config asks to look at.

    Attributes:
      watching: of prompts and questions.
    """

    def __init__(
        self,
        experiment: Experiment,
        run_dir: Path,
        stop: StopFn | None = None,
        given: Given = Given(),  # noqa: B008, it is frozen
    ):
        self._experiment, self._run_dir, self._stop = experiment, run_dir, stop
        self._store = ScoreStore(run_dir)
        self._predictors = Predictors(experiment)
        self.watching = Watching(experiment, run_dir, self._predictors, given)

    def sample(self, stage: Stage, step: int, params: Params, keep: bool = False) -> None:
        """Writes samples/STAGE_STEP.png with its prompts in a .json next to it, and answers: see `Watching`.

        Of an image tokenizer, pictures beside their reconstructions, where a benchmark has some.

        Args:
          stage: what trains.
          step: that was done.
          params: a full tree on the mesh, with or without an adapter.
          keep: what is there of this step stays, if it is what would be drawn now.
        """
        if RECONSTRUCT in abilities(stage):
            shown = (b.preview_pictures() for b in self._experiment.benchmarks)
            pictures = next((p for p in shown if p is not None), None)
            if pictures is None or step == 0:  # of random weights there is nothing to see
                return
            params, name = handed_on(stage, params), f"{stage.name}_{step:06d}"
            predictor = self._predictors.of_tokenizer(params)
            both = np.stack([pictures, predictor.reconstruct(pictures)], 1)
            both = both.reshape(-1, *pictures.shape[1:])
            write_grid(self._run_dir, name, both, RECONSTRUCTED_COLUMNS, ["true, VQ"])
        else:
            self.watching.look(stage, step, params, keep)

    def score(self, stage: Stage, params: Params, final: bool, quiet: bool = False) -> None:
        """Scores a stage and adds the result to scores.json under its name.

        The final stage is scored by whole benchmarks, at the guidance that did best on other prompts.
        """
        can = abilities(stage)
        benchmarks = [b for b in self._experiment.benchmarks if b.scored and b.needs in can]
        scores = first_only(self._store.read)
        if not benchmarks or is_scored(scores.get(stage.name, {})):
            return
        if not quiet:
            print(f"scoring after {stage.name}", flush=True)
        began = time.perf_counter()
        entry = scores.setdefault(stage.name, {})
        if RECONSTRUCT in can:
            entry |= run_benchmarks(benchmarks, self._predictors.of_tokenizer(params))
        else:
            entry |= self._scores_of_model(stage, params, benchmarks, final)
        entry["scoring_seconds"] = time.perf_counter() - began
        self._store.write(scores)

    def _scores_of_model(
        self, stage: Stage, params: Params, benchmarks: list[Benchmark], final: bool
    ) -> dict[str, Any]:
        processor, entry = self._experiment.processor.config, {}
        stopping = self._stopping(stage)
        predictor = self._predictors.of(params, drawing=stopping, answering=stopping)
        if any(b.needs == DRAW for b in benchmarks):
            weight = processor.cfg_weight
            if final and (tuning := _tuning(benchmarks)):
                weight, entry["guidance"] = choose_cfg_weight(
                    tuning, lambda w: predictor.drawing_with(cfg_weight=w)
                )
            entry |= {"cfg_weight": weight, "temperature": processor.temperature}
            predictor = predictor.drawing_with(cfg_weight=weight)
        asked = benchmarks if final else [b.shortened() for b in benchmarks]
        entry |= run_benchmarks(asked, predictor)
        if final:
            shown = [item for b in benchmarks for item in b.gallery(predictor)]
            if shown:
                write_gallery(self._run_dir, shown)
        self.sample(stage, stage.steps, params, keep=True)
        return entry

    def _stopping(self, stage: Stage) -> dict[str, Any]:
        """Sampling settings that look for a signal before every batch."""
        if self._stop is None:
            return {}

        def batches_until_stopped(batches: Iterable[Any]) -> Iterator[Any]:
            for batch in batches:
                if stopped_by := self._stop():
                    raise Stopped(stage.name, stage.steps, stopped_by)
                yield batch

        return {"progress": batches_until_stopped}


def _tuning(benchmarks: list[Benchmark]) -> Tuning | None:
    """How guidance is chosen, once for all benchmarks of a stage: as the first one of them does that can."""
    return next((t for t in (b.tuning() for b in benchmarks if b.needs == DRAW) if t), None)
