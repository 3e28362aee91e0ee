"""Emoji scenes as a source of examples: example i is always the same, on every machine."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from janus_jax.data import STAGE_0_TASKS, TASKS, Example, Generation, Picture, Text, Understanding
from janus_jax.emoji.language import (
    DESCRIBE,
    DESCRIBE_IN_DETAIL,
    QUESTION_KINDS,
    SCENES_OF_QUESTION,
    caption,
    description,
    detailed_caption,
    drawing_in_words,
    fact,
    picture_in_words,
    question,
)
from janus_jax.emoji.scene import SCENE_KINDS, TRAINING_SCENE_KINDS, Scene, random_scene, render
from janus_jax.emoji.world import World
from janus_jax.errors import UserError, nearest

# The tasks get different random streams from the same index.
_STREAMS = {"und": 1, "text": 2, "gen": 3, "pictures": 4, "pairs": 5}
_CROWDED = ("mixed", "dense")  # kinds of scenes that are captioned in detail
_SHARES = ("detailed", "describe", "yes_no", "drawings")
# Shares that make the examples of a task longer or shorter.
_LENGTHENING = {
    "und": ("detailed", "describe"),
    "text": ("detailed", "describe", "drawings"),
    "gen": ("detailed",),
}


class EmojiSource:
    """Random-access source of the examples of one task.

    Args:
      task: "und", "text" or "gen"; "pictures" (image tokenizer) or "pairs" (understanding encoder), which
        are generation examples with a sentence that says all that is in the picture.
      kinds: kind of scene -> weight, of scenes that are drawn or described; all of `SCENE_KINDS` alike by
        default.
      detailed: share of those that instead show crowded scenes and say all that is in them: every
        object with its place, and the background. A short caption leaves most of a picture open and
        says little about each code; this one leaves nothing open.
      describe: share of understanding examples that ask for a caption instead of a question.
      questions: most questions about one picture, asked one after the other in one conversation.
      yes_no: share of these that ask whether something is there, besides those that do so by chance:
        of all it is the hardest to learn, because nothing in the picture says "no".
      chat: text comes as conversations like those about pictures and like requests to draw, but with the
        picture in words; otherwise as plain text.
      drawings: share of these conversations that draw.
      world: keyword arguments of `World`.
      seed: another seed is another data set; evaluation uses seeds that training does not.
      size: number of examples.

    Raises:
      UserError: an impossible value.
    """

    def __init__(
        self,
        task: str,
        kinds: Mapping[str, float] | None = None,
        detailed: float = 0.0,
        describe: float = 0.3,
        questions: int = 1,
        yes_no: float = 0.0,
        chat: bool = False,
        drawings: float = 0.3,
        world: Mapping[str, Any] | None = None,
        seed: int = 0,
        size: int = 10_000_000,
    ):
        if task not in _STREAMS:
            raise UserError(
                f"the emoji source has no task {task!r} ({', '.join((*TASKS, *STAGE_0_TASKS))})"
            )
        self._options = dict(
            kinds=dict(kinds or dict.fromkeys(SCENE_KINDS, 1.0)),
            detailed=detailed,
            describe=describe,
            questions=questions,
            yes_no=yes_no,
            chat=chat,
            drawings=drawings,
        )
        _check(self._options)
        self._task, self._seed, self._size = task, seed, size
        self._world_options, self._world = world, World.from_options(world or {})
        kinds = {k: w for k, w in self._options["kinds"].items() if w > 0}
        self._kinds = sorted(kinds)  # whatever order a file has them in
        weights = np.array([kinds[k] for k in self._kinds], np.float64)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._make = getattr(self, f"_{task}")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng((self._seed, _STREAMS[self._task], int(index)))
        return self._make(rng)

    def extremes(self) -> list[EmojiSource]:
        """Sources of what is rare in this one: every share that changes lengths wholly there, and not at all."""
        choices = [self._options]
        for field in _LENGTHENING.get(self._task, ()):
            if self._task == "text" and not self._options["chat"]:
                break
            share = self._options[field]
            ends = [*([0.0] if share < 1 else []), *([1.0] if share > 0 else [])]
            choices = [choice | {field: end} for choice in choices for end in ends]
        same = dict(world=self._world_options, seed=self._seed, size=self._size)
        return [EmojiSource(self._task, **choice, **same) for choice in choices]

    def _scene(self, rng: np.random.Generator) -> Scene:
        kind = self._kinds[int(np.searchsorted(self._cumulative, rng.random(), side="right"))]
        return random_scene(rng, self._world, kind)

    def _captioned(self, rng: np.random.Generator) -> tuple[Scene, str, bool]:
        """(scene, caption, whether it is a detailed one)."""
        if rng.random() < self._options["detailed"]:
            kind = _CROWDED[int(rng.integers(len(_CROWDED)))]
            scene = random_scene(rng, self._world, kind)
            return scene, detailed_caption(scene, self._world), True
        scene = self._scene(rng)
        return scene, caption(scene, rng), False

    def _picture(self, scene: Scene) -> Picture:
        return functools.partial(render, scene, self._world)

    def _und(self, rng: np.random.Generator) -> Understanding:
        scene, turns = self._asked(rng)
        return Understanding(images=(self._picture(scene),), turns=turns)

    def _asked(self, rng: np.random.Generator) -> tuple[Scene, list[tuple[str, str]]]:
        """A scene, and a request to describe it or some questions about it, with the answers."""
        if rng.random() >= self._options["describe"]:
            return self._questions(rng)
        scene, answer, detailed = self._captioned(rng)
        requests = DESCRIBE_IN_DETAIL if detailed else DESCRIBE
        return scene, [(requests[int(rng.integers(len(requests)))], answer)]

    def _questions(self, rng: np.random.Generator) -> tuple[Scene, list[tuple[str, str]]]:
        """A scene and up to `questions` different (question, answer) about it."""
        kind = QUESTION_KINDS[int(rng.integers(len(QUESTION_KINDS)))]
        scene_kinds = SCENES_OF_QUESTION[kind]
        scene = random_scene(rng, self._world, scene_kinds[int(rng.integers(len(scene_kinds)))])
        fitting = [k for k in QUESTION_KINDS if scene.kind in SCENES_OF_QUESTION[k]]
        asked: dict[str, str] = {}
        absent: list[str] = []  # two of them could be a held-out pair, too
        for _ in range(self._options["questions"]):
            if rng.random() < self._options["yes_no"]:
                kind = "yes_no"
            qa = question(scene, kind, rng, self._world, absent)
            asked.setdefault(qa.text, qa.answer)
            if qa.answer == "no":
                _, _, _, name = qa.text.rstrip("?").split(" ", 3)  # "is there a panda face?"
                absent.append(name)
            kind = fitting[int(rng.integers(len(fitting)))]
        return scene, list(asked.items())

    def _text(self, rng: np.random.Generator) -> Text:
        if not self._options["chat"]:
            return Text(text=fact(self._scene(rng), rng, self._world))
        if rng.random() < self._options["drawings"]:
            scene, caption, _ = self._captioned(rng)
            drawing = drawing_in_words(scene, self._world)
            return Text(turns=[(caption, drawing)], asks_to_draw=True)
        scene, turns = self._asked(rng)
        return Text(turns=turns, picture_words=picture_in_words(scene, self._world))

    def _gen(self, rng: np.random.Generator) -> Generation:
        scene, caption, _ = self._captioned(rng)
        return Generation(
            prompt=caption, picture=self._picture(scene), dropout_draw=float(rng.random())
        )

    def _pictures(self, rng: np.random.Generator) -> Generation:
        scene = self._scene(rng)
        prompt = description(scene, self._world)
        return Generation(prompt=prompt, picture=self._picture(scene))

    _pairs = _pictures


def _check(options: Mapping[str, Any]) -> None:
    """Raises UserError for an option with an impossible value."""
    kinds = options["kinds"]
    for kind, weight in kinds.items():
        if kind not in TRAINING_SCENE_KINDS:
            raise UserError(
                f"options.kinds: no kind of scene {kind!r}.{nearest(kind, TRAINING_SCENE_KINDS)}"
            )
        if not 0 <= weight < float("inf"):
            raise UserError(f"options.kinds.{kind} must be a weight >= 0, not {weight!r}")
    if not any(kinds.values()):
        raise UserError("options.kinds: give at least one kind of scene a weight above 0")
    for field in _SHARES:
        if not 0 <= options[field] <= 1:
            raise UserError(f"options.{field} must be a share from 0 to 1, not {options[field]}")
    if options["questions"] < 1:
        raise UserError(f"options.questions must be at least 1, not {options['questions']}")
