"""What people look at while a stage trains: fixed prompts to draw, and fixed questions about pictures.

They are given, by `eval.watch_prompts` or in the file `eval.watch`:

    prompts: [a cat on the moon, two cups of tea]
    questions:
      - image: pictures/1.png      # relative to the file
        question: What is this?
        answer: a cat              # the true one, shown beside the model's; may be left out

Of the two kinds, one that is not given is taken from the first records of the stage's files: from those that are
held out, or where nothing is, from those that it trains on. Without files, prompts are those of a benchmark.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from janus_jax.data import (
    TASKS,
    Example,
    Generation,
    Picture,
    Rejected,
    Source,
    Understanding,
)
from janus_jax.data.encode import open_picture
from janus_jax.data.manifest import FILES, read_yaml
from janus_jax.errors import UserError, nearest
from janus_jax.inference.limits import PositionLimits
from janus_jax.processing import generation_pixels, load_image, understanding_pixels
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import held_out_of, open_source, usable
from janus_jax.training import Stage
from janus_jax.untrusted import shown

TAKEN = 6  # prompts, and questions, that are taken from records
MOST = 64  # that can be given: all of them are drawn each time
# Where something comes from.
GIVEN, HELD_OUT, TRAINED_ON, BENCHMARK = "given", "held out", "trained on", "of a benchmark"
_PLACEHOLDER = "<image_placeholder>"
_FIELDS = ("prompts", "questions")
_OF_QUESTION = ("image", "question", "answer")
_Made = TypeVar("_Made")


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What is drawn; `truth` is the picture of the record as it is learnt, uint8 [h, w, 3], if there is one."""

    text: str
    truth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """What is asked about pictures, as the model sees them, uint8 [H, W, 3]; `truth` is the answer, if known."""

    images: tuple[np.ndarray, ...]
    text: str
    truth: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class WatchList:
    """What is looked at, and where it comes from: `GIVEN`, `HELD_OUT`, `TRAINED_ON` or `BENCHMARK`."""

    prompts: tuple[Prompt, ...] = ()
    questions: tuple[Question, ...] = ()
    prompts_are: str = GIVEN
    questions_are: str = GIVEN

    def __bool__(self) -> bool:
        return bool(self.prompts or self.questions)


@dataclasses.dataclass(frozen=True)
class Given:
    """What the config names; None for a kind that it leaves to the data."""

    prompts: tuple[Prompt, ...] | None = None
    questions: tuple[Question, ...] | None = None


def read_given(experiment: Experiment) -> Given:
    """What is given, checked: every picture can be read, and what is asked fits the model.

    Raises:
      UserError: one line that names the field, or the file and the entry in it.
    """
    settings, where = experiment.config.eval, "config.eval.watch_prompts"
    prompts, path = settings.get("watch_prompts", ()), settings.get("watch", "")
    if not isinstance(path, str):
        raise UserError(f"config.eval.watch must be the name of a YAML file, not {shown(path)}")
    entries = _read_file(Path(path)) if path else {}
    if prompts and "prompts" in entries:
        raise UserError(f"{where} is given, and {path} has prompts, too: leave one of them out")
    if not prompts:
        prompts, where = entries.get("prompts"), f"{path}: prompts"
    model = _Model(experiment)
    asked = entries.get("questions")
    return Given(
        None if prompts is None else _prompts(prompts, where, model),
        None if asked is None else _questions(asked, path, model),
    )


def make_list(experiment: Experiment, stage: Stage, given: Given) -> WatchList:
    """What is looked at in a stage; nothing in one that does not train on sequences.

    A record that cannot be used, or is too long for the model, is passed over. Of a conversation the first
    question counts. A source that is no files has no records that stay the same, so nothing is taken from it.
    """
    if not stage.packed:
        return WatchList()
    model = _Model(experiment)
    prompts, questions, prompts_are, questions_are = given.prompts, given.questions, GIVEN, GIVEN
    if prompts is None:
        seen: set[str] = set()
        taken, prompts_are = _taken(stage, "gen", lambda x: _prompt_of(x, model, seen))
        prompts = tuple(taken)
        if not prompts and stage.ratio[TASKS.index("gen")] > 0:
            found = (benchmark.preview_prompts(stage) for benchmark in experiment.benchmarks)
            prompts = tuple(map(Prompt, next(filter(None, found), ())))
            prompts_are = BENCHMARK
    if questions is None:
        taken, questions_are = _taken(stage, "und", lambda x: _question_of(x, model))
        questions = tuple(taken)
    return WatchList(prompts, questions, prompts_are, questions_are)


class _Model:
    """What fits the positions of the model, and pictures in its sizes."""

    def __init__(self, experiment: Experiment):
        config = experiment.janus_config
        self._processor, self._codes = experiment.processor, config.vq.num_codes
        self._drawn, self._seen = config.vq.image_size, config.siglip.image_size
        self._limits = PositionLimits(config.decoder.max_position)

    def check_prompt(self, text: str) -> None:
        """Raises UserError for a prompt that is empty, no text, or after which no picture fits."""
        ids = self._processor.generation_ids(text)
        self._limits.check(ids, "prompt", self._codes)

    def drawn(self, picture: Picture) -> np.ndarray:
        """A picture as it is learnt to be drawn; raises UserError for one that cannot be read."""
        return generation_pixels(_opened(picture), self._drawn)

    def seen(self, picture: Picture) -> np.ndarray:
        """A picture as it is asked about: small, so that a list of large ones takes little memory."""
        return understanding_pixels(_opened(picture), self._seen)

    def check_question(self, text: str, pictures: int) -> None:
        ids = self._processor.understanding_ids(text, pictures)
        self._limits.check(ids, "question", 1)


def _read_file(path: Path) -> dict[str, Any]:
    found = read_yaml(path)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: it must have the key prompts or questions, or both")
    for key in found:
        if key not in _FIELDS:
            raise UserError(f"{path}: no key {shown(key)}.{nearest(str(key), _FIELDS)}")
    return found


def _prompts(values: Any, where: str, model: _Model) -> tuple[Prompt, ...]:
    _check_list(values, where, "texts")
    for number, text in enumerate(values, 1):
        if not isinstance(text, str) or not text.strip():
            reason = f"must be a text, not {shown(text)}" if text else "is empty"
            raise UserError(f"{where}: prompt {number} {reason}")
        try:
            model.check_prompt(text)
        except UserError as error:
            raise UserError(f"{where}: prompt {number}: {error}") from error
    return tuple(Prompt(text) for text in values)


def _questions(values: Any, path: str, model: _Model) -> tuple[Question, ...]:
    _check_list(values, f"{path}: questions", f"entries with {', '.join(_OF_QUESTION)}")
    base = Path(os.path.abspath(path)).parent
    return tuple(
        _question(entry, base, f"{path}: question {number}", model)
        for number, entry in enumerate(values, 1)
    )


def _question(entry: Any, base: Path, where: str, model: _Model) -> Question:
    if not isinstance(entry, dict):
        raise UserError(f"{where} must have the keys image and question, not {shown(entry)}")
    for key in entry:
        if key not in _OF_QUESTION:
            raise UserError(f"{where}: no key {shown(key)}.{nearest(str(key), _OF_QUESTION)}")
    for key in _OF_QUESTION:
        value = entry.get(key)
        if value is None and key == "answer":
            continue
        if not isinstance(value, str) or not value.strip():
            reason = "is missing" if key not in entry else f"must be a text, not {shown(value)}"
            raise UserError(f"{where}: {key} {reason}")
    try:
        picture = load_image(os.path.join(base, os.path.expanduser(entry["image"])))
        model.check_question(entry["question"], 1)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Question((model.seen(picture),), entry["question"], entry.get("answer"))


def _check_list(values: Any, where: str, what: str) -> None:
    if not isinstance(values, list | tuple):
        raise UserError(f"{where} must be a list of {what}, not {shown(values)}")
    if len(values) > MOST:
        raise UserError(
            f"{where}: {len(values)} are too many, as all of them are computed again and again: {MOST} at most"
        )


def _taken(
    stage: Stage, task: str, make: Callable[[Example], _Made | None]
) -> tuple[list[_Made], str]:
    """(what is made of the first records of a task, its sources in turn; whether they are held out)."""
    shares = dict(zip(TASKS, stage.ratio, strict=True))
    specs = [s for s in stage.sources if s.name == FILES and s.task == task and s.weight > 0]
    specs = specs if shares[task] else []
    held = [source for s in specs if s.held_out and len(source := held_out_of(stage, s))]
    sources = held or [open_source(stage, spec, seed=0) for spec in specs]
    in_turn = itertools.zip_longest(*(_made(source, make) for source in sources))
    made = (x for some in in_turn for x in some if x is not None)
    return list(itertools.islice(made, TAKEN)), HELD_OUT if held else TRAINED_ON


def _made(source: Source, make: Callable[[Example], _Made | None]) -> Iterator[_Made]:
    for _, example in usable(source):
        try:
            made = make(example)
        except (UserError, OSError):
            continue
        if made is not None:
            yield made


def _prompt_of(example: Example, model: _Model, seen: set[str]) -> Prompt | None:
    """None for a prompt that is there already: the same one with the same seed is the same picture."""
    if not isinstance(example, Generation) or not example.prompt.strip() or example.prompt in seen:
        return None
    model.check_prompt(example.prompt)
    picture = None if example.picture is None else model.drawn(example.picture)
    seen.add(example.prompt)
    return Prompt(example.prompt, picture)


def _question_of(example: Example, model: _Model) -> Question | None:
    if not isinstance(example, Understanding):
        return None
    text, answer = example.turns[0]
    later = sum(question.count(_PLACEHOLDER) for question, _ in example.turns[1:])
    images: Sequence[Any] = example.images[: len(example.images) - later]
    if not images:
        return None
    model.check_question(text, len(images))
    return Question(tuple(map(model.seen, images)), text, answer)


def _opened(picture: Picture) -> Image.Image:
    """Raises UserError for one that cannot be read."""
    is_made = callable(picture) and not isinstance(picture, Image.Image)
    found = picture() if is_made else picture
    if isinstance(found, Rejected):
        raise UserError(str(found))
    return open_picture(found)
