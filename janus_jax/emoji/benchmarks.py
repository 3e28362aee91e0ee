"""What a model that learnt the emoji world is scored by, as benchmarks that a config names.

Each takes `world`, the options of `World`: pictures must be as large as those that the model was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from janus_jax.emoji.geneval import make_prompts, mini_geneval, prove_judge
from janus_jax.emoji.language import QUESTION_KINDS
from janus_jax.emoji.questions import make_questions, question_accuracy
from janus_jax.emoji.report import DRAWING, QUESTIONS
from janus_jax.emoji.scene import SCENE_KINDS, render
from janus_jax.emoji.world import World
from janus_jax.errors import UserError, nearest
from janus_jax.evaluation import (
    ANSWER,
    DRAW,
    RECONSTRUCT,
    Benchmark,
    GalleryItem,
    Predictor,
    Scores,
    Tuning,
    normalize_answer,
)
from janus_jax.evaluation.benchmark import check_count, check_weights

SCORE_SEED, TUNING_SEED, PREVIEW_SEED = 1_000_003, 1_000_033, 1
PREVIEWS = 24  # pictures of a grid of samples
PREVIEWS_OF_A_TASK = 4  # pictures of a grid of reconstructions
QUESTIONS_SHOWN = 2  # of each kind
ANSWER_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class MiniGenEval(Benchmark):
    """Prompts of GenEval's six kinds, judged by what the pictures show.

    Attributes:
      prompts: of each kind, one picture for each; between stages half as many. 0 scores nothing and
        keeps the previews.
      world: options of `World`.
      cfg_weights: of guidance; with several, the last stage takes the one that does best on other
        prompts.
      held_out: whether combinations that training never showed are scored, too.
      seed: of the prompts.
    """

    name = "emoji/geneval"
    needs = DRAW
    report = DRAWING

    prompts: int = 50
    world: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cfg_weights: tuple[float, ...] = ()
    held_out: bool = True
    seed: int = SCORE_SEED

    def __post_init__(self):
        check_count("prompts", self.prompts)
        check_weights("cfg_weights", self.cfg_weights)
        make_world(self.world)

    @property
    def scored(self) -> bool:
        return self.prompts > 0

    def run(self, predictor: Predictor) -> Scores:
        world, draw = make_world(self.world), predictor.draw
        scores = {"mini_geneval": mini_geneval(draw, world, self.prompts, seed=self.seed)}
        if self.held_out:
            scores["mini_geneval_held_out"] = mini_geneval(
                draw, world, self.prompts, held_out=True, seed=self.seed
            )
        return scores

    def shortened(self) -> MiniGenEval:
        return dataclasses.replace(self, prompts=max(self.prompts // 2, 2), held_out=False)

    def tuning(self) -> Tuning | None:
        if len(self.cfg_weights) < 2:
            return None
        # Strict as well, because more guidance adds what nobody asked for.
        quality = lambda table: table["mean"]["plain"] + table["mean"]["strict"]
        other = dataclasses.replace(self.shortened(), seed=TUNING_SEED)
        return Tuning(other, tuple(self.cfg_weights), quality)

    def preview_prompts(self, stage: Any) -> list[str]:
        """A few prompts of each kind that the stage trains to draw, or of all kinds."""
        world, trained = make_world(self.world), _trained_tasks(stage)
        tasks = [t for t in SCENE_KINDS if t in trained] or list(SCENE_KINDS)
        count = PREVIEWS // len(tasks)
        return [p.text for t in tasks for p in make_prompts(world, t, count, seed=PREVIEW_SEED)]


@dataclasses.dataclass(frozen=True)
class JudgeCeiling(Benchmark):
    """What the judge's scores are worth, and the best that an image tokenizer lets a model get.

    Attributes:
      pictures: of each kind; 0 scores nothing and keeps the previews.
      world: options of `World`.
    """

    name = "emoji/judge"
    needs = RECONSTRUCT

    pictures: int = 50
    world: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_count("pictures", self.pictures)
        make_world(self.world)

    @property
    def scored(self) -> bool:
        return self.pictures > 0

    def run(self, predictor: Predictor) -> Scores:
        # Shuffling a single picture would leave it where it is.
        count = max(self.pictures, 2)
        return {"judge": prove_judge(make_world(self.world), predictor.reconstruct, count)}

    def preview_pictures(self) -> np.ndarray:
        world = make_world(self.world)
        prompts = [
            p
            for t in SCENE_KINDS
            for p in make_prompts(world, t, PREVIEWS_OF_A_TASK, seed=PREVIEW_SEED)
        ]
        return np.stack([render(p.scene, world) for p in prompts])


@dataclasses.dataclass(frozen=True)
class Questions(Benchmark):
    """Questions of every kind about scenes that are drawn for this.

    Attributes:
      questions: of each kind; between stages half as many. 0 scores nothing.
      world: options of `World`.
      held_out: whether scenes with combinations that training never showed are asked about, too.
    """

    name = "emoji/questions"
    needs = ANSWER
    report = QUESTIONS

    questions: int = 50
    world: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    held_out: bool = True

    def __post_init__(self):
        check_count("questions", self.questions)
        make_world(self.world)

    @property
    def scored(self) -> bool:
        return self.questions > 0

    def run(self, predictor: Predictor) -> Scores:
        world, count = make_world(self.world), max(self.questions, 2)

        def answer(pictures, texts):
            return predictor.answer(pictures, texts, max_new_tokens=ANSWER_TOKENS)

        scores = {"questions": question_accuracy(answer, world, count)}
        if self.held_out:
            scores["questions_held_out"] = question_accuracy(answer, world, count, held_out=True)
        return scores

    def shortened(self) -> Questions:
        return dataclasses.replace(self, questions=max(self.questions // 2, 2), held_out=False)

    def gallery(self, predictor: Predictor) -> list[GalleryItem]:
        world, items = make_world(self.world), []
        for kind in QUESTION_KINDS:
            pictures, questions = make_questions(world, kind, QUESTIONS_SHOWN, seed=PREVIEW_SEED)
            texts = [q.text for q in questions]
            answers = predictor.answer(pictures, texts, max_new_tokens=ANSWER_TOKENS)
            for i, (picture, question, answer) in enumerate(
                zip(pictures, questions, answers, strict=True)
            ):
                right = normalize_answer(answer) == normalize_answer(question.answer)
                items.append(
                    GalleryItem(
                        f"question_{kind}_{i}",
                        picture,
                        question.text,
                        answer,
                        question.answer,
                        right,
                    )
                )
        return items


def make_world(options: Mapping[str, Any]) -> World:
    """The world of a benchmark's options.

    Raises:
      UserError: no such option, or an impossible value.
    """
    known = [field.name for field in dataclasses.fields(World)]
    for option in dict(options):
        if option not in known:
            raise UserError(f"world: no option {option!r}.{nearest(option, known)}")
    world = World(**options)
    if world.objects not in ("tiny", "all"):
        raise UserError(f"world.objects must be tiny or all, not {world.objects!r}")
    if not 2 <= world.grid <= 4 or world.image_size % world.grid:
        raise UserError("world.grid must be 2, 3 or 4, and world.image_size a multiple of it")
    return world


def _trained_tasks(stage: Any) -> set[str]:
    """The kinds of scene that a stage draws, by the options of its sources."""
    return {
        kind
        for source in getattr(stage, "sources", ())
        if source.task == "gen"
        for kind, weight in source.options.get("kinds", {}).items()
        if weight > 0
    }
