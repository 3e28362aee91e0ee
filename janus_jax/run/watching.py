"""Draws and answers what a stage's `WatchList` asks, always with the same seed, into samples/.

STAGE_STEP.png, .json      the pictures, `COLUMNS` in a row; prompts and settings
STAGE_STEP_answers.json    {"are", "answers": [{"image", "question", "answer", "truth"}]}
STAGE_true.png, .json      the pictures of the records that the prompts are of
STAGE_asked_NUMBER.png     what the questions are about
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from janus_jax.errors import UserError, one_line
from janus_jax.files import read_json, write_json
from janus_jax.inference.memory import TooLittleMemory
from janus_jax.models import Params
from janus_jax.parallel import first_only, is_first
from janus_jax.run.experiment import Experiment
from janus_jax.run.predictors import Predictors, layer_by_layer
from janus_jax.run.samples import sample_directory, save_png, write_grid
from janus_jax.run.watch_list import Given, WatchList, make_list
from janus_jax.training import Stage, handed_on

COLUMNS = 6
SEED = 0  # of every prompt
ANSWER_TOKENS = 128  # at most: a model that has not learnt to end an answer does not end it
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the errors of XLA


class Watching:
    """Draws and answers in all processes of a job; the first one writes.

    What is compiled stays from one time to the next, weights do not: training needs the memory. Where there is not
    enough of it, one warning says so, and nothing more is drawn by this process.

    Args:
      experiment: of the run.
      run_dir: where samples/ is.
      predictors: of the run.
      given: what the config asks for.
    """

    def __init__(self, experiment: Experiment, run_dir: Path, predictors: Predictors, given: Given):
        self._experiment, self._run_dir, self._given = experiment, run_dir, given
        self._predictors = predictors
        self._lists: dict[str, WatchList] = {}
        self._shown: set[str] = set()  # stages whose pictures of records are written
        self._off = False

    def list_of(self, stage: Stage) -> WatchList:
        """What is looked at in a stage."""
        if stage.name not in self._lists:
            self._lists[stage.name] = make_list(self._experiment, stage, self._given)
        return self._lists[stage.name]

    def say(self, stage: Stage, every: int) -> None:
        """One line of what will be looked at."""
        watched = self.list_of(stage)
        kinds = (
            ("prompt", watched.prompts, watched.prompts_are),
            ("question", watched.questions, watched.questions_are),
        )
        some = " and ".join(f"{_count(name, found)} ({are})" for name, found, are in kinds if found)
        if not some or not is_first() or not (every or self._given != Given()):
            return
        when = f"before the first step, every {_count('step', every)} and at the end"
        if not every:
            when = "never, as config.log.sample_every is 0"
        print(f"{stage.name}: {some} go to samples/ {when}", file=sys.stderr)

    def look(self, stage: Stage, step: int, params: Params, keep: bool = False) -> None:
        """Draws and answers after a step.

        Args:
          stage: what trains.
          step: that was done.
          params: a full tree on the mesh, with or without an adapter.
          keep: what is there of this step stays, if it is of the same prompts, questions and settings.

        Raises:
          UserError: the disk is full.
        """
        watched = self.list_of(stage)
        if self._off or not watched:
            return
        name = f"{stage.name}_{step:06d}"
        if keep and first_only(lambda: self._is_there(stage, name, watched)):
            return
        try:
            pictures, answers = self._sampled(stage, watched, params)
        except (TooLittleMemory, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, TooLittleMemory) and _OUT_OF_MEMORY not in str(error):
                raise
            self._off = True
            self._say_off(stage, step, error)
            return
        finally:
            self._predictors.let_go()
        if is_first():
            self._write(stage, name, watched, pictures, answers)

    def complete(self, stage: Stage, params: Params) -> None:
        """Draws and answers after the last step of a finished stage that was ended right before that."""
        directory = self._run_dir / "samples"

        def has(step: int) -> bool:
            ends = (".json", "_answers.json")
            return any((directory / f"{stage.name}_{step:06d}{end}").exists() for end in ends)

        if first_only(lambda: has(0) and not has(stage.steps)):
            self.look(stage, stage.steps, params)

    def _sampled(
        self, stage: Stage, watched: WatchList, params: Params
    ) -> tuple[Sequence[np.ndarray], list[str]]:
        predictor = self._predictors.of(handed_on(stage, layer_by_layer(params)))
        prompts, questions = watched.prompts, watched.questions
        pictures = predictor.draw([p.text for p in prompts], seed=SEED) if prompts else []
        if not questions:
            return pictures, []
        images, texts = [list(q.images) for q in questions], [q.text for q in questions]
        return pictures, predictor.answer(images, texts, max_new_tokens=ANSWER_TOKENS)

    def _write(
        self,
        stage: Stage,
        name: str,
        watched: WatchList,
        pictures: Sequence[np.ndarray],
        answers: list[str],
    ) -> None:
        if stage.name not in self._shown:
            self._write_shown(stage, watched)
            self._shown.add(stage.name)
        if answers:
            asked = self._asked(stage, watched)
            found = [q | {"answer": a} for q, a in zip(asked, answers, strict=True)]
            path = sample_directory(self._run_dir) / f"{name}_answers.json"
            write_json(path, {"are": watched.questions_are, "answers": found})
        if len(pictures):
            prompts = [p.text for p in watched.prompts]
            write_grid(self._run_dir, name, pictures, COLUMNS, prompts, self._settings(watched))

    def _write_shown(self, stage: Stage, watched: WatchList) -> None:
        """The true pictures, and those that are asked about."""
        sample_directory(self._run_dir)
        truths = [p.truth for p in watched.prompts]
        if any(truth is not None for truth in truths):
            white = next(np.full_like(t, 255) for t in truths if t is not None)
            shown = [white if truth is None else truth for truth in truths]
            prompts = [p.text for p in watched.prompts]
            write_grid(
                self._run_dir, f"{stage.name}_true", shown, COLUMNS, prompts, {"columns": COLUMNS}
            )
        for entry, question in zip(self._asked(stage, watched), watched.questions, strict=True):
            sheet = Image.fromarray(np.concatenate(question.images, axis=1))
            save_png(sheet, self._run_dir / entry["image"])

    def _asked(self, stage: Stage, watched: WatchList) -> list[dict[str, Any]]:
        return [
            {
                "image": f"samples/{stage.name}_asked_{number}.png",
                "question": question.text,
                "truth": question.truth,
            }
            for number, question in enumerate(watched.questions)
        ]

    def _settings(self, watched: WatchList) -> dict[str, Any]:
        own = self._experiment.processor.config
        return {
            "are": watched.prompts_are,
            "columns": COLUMNS,
            "seed": SEED,
            "cfg_weight": own.cfg_weight,
            "temperature": own.temperature,
        }

    def _is_there(self, stage: Stage, name: str, watched: WatchList) -> bool:
        directory = self._run_dir / "samples"
        if watched.prompts:
            wanted = {"prompts": [p.text for p in watched.prompts], **self._settings(watched)}
            if _read(directory / f"{name}.json") != wanted:
                return False
        if not watched.questions:
            return True
        found = _read(directory / f"{name}_answers.json").get("answers")
        without = lambda q: {k: v for k, v in q.items() if k != "answer"}
        asked = self._asked(stage, watched)
        try:
            return [without(q) for q in found] == asked
        except (TypeError, AttributeError):  # damaged
            return False

    def _say_off(self, stage: Stage, step: int, error: Exception) -> None:
        if is_first():
            print(
                f"warning: {stage.name} step {step}: no samples from here on, as the device has too little memory "
                f"beside the training ({one_line(error)[:160]}); fewer rows at a time leave more "
                f"(config.stages.{stage.name}.accumulate), and config.log.sample_every=0 asks for none",
                file=sys.stderr,
            )


def _count(name: str, things: Sequence[Any] | int) -> str:
    count = things if isinstance(things, int) else len(things)
    return f"{count} {name}{'s' * (count != 1)}"


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; nothing where it is damaged or not there."""
    try:
        return read_json(path, dict) if path.exists() else {}
    except (UserError, OSError):
        return {}
