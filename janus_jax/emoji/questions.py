"""Question accuracy on freshly drawn scenes, by kind, against always giving the commonest answer.

Yes/no questions are also scored as POPE does (Li et al. 2023): precision, recall and F1 of "yes".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from janus_jax.emoji.language import QUESTION_KINDS, SCENES_OF_QUESTION, Question, question
from janus_jax.emoji.scene import random_scene, render
from janus_jax.emoji.world import World
from janus_jax.evaluation.metrics import accuracy, majority, normalize_answer, pope

Answer = Callable[[np.ndarray, Sequence[str]], list[str]]


def make_questions(
    world: World, kind: str, count: int, held_out: bool = False, seed: int = 1_000_007
) -> tuple[np.ndarray, list[Question]]:
    """Pictures uint8 [count, h, w, 3] and a question of `kind` about each.

    With `held_out`, scenes show object pairs and tints that training never showed, where the kind's
    tasks have any.
    """
    pictures, questions = [], []
    for i in range(count):
        rng = np.random.default_rng((seed, QUESTION_KINDS.index(kind), int(held_out), i))
        tasks = SCENES_OF_QUESTION[kind]
        scene = random_scene(rng, world, tasks[int(rng.integers(len(tasks)))], held_out)
        questions.append(question(scene, kind, rng, world))
        pictures.append(render(scene, world))
    return np.stack(pictures), questions


def question_accuracy(
    answer: Answer, world: World, per_kind: int, held_out: bool = False, seed: int = 1_000_007
) -> dict[str, dict[str, float]]:
    """Asks `per_kind` questions of every kind.

    Args:
      answer: (pictures uint8 [B, h, w, 3], questions) -> answers.

    Returns:
      Kind -> {"accuracy", "majority", "count"} (yes_no also "precision", "recall", "f1"), and "mean".
      An answer is right if it equals the true one, up to case, blanks and a final full stop.
    """
    scores: dict[str, dict[str, float]] = {}
    for kind in QUESTION_KINDS:
        pictures, questions = make_questions(world, kind, per_kind, held_out, seed)
        answers = [normalize_answer(a) for a in answer(pictures, [q.text for q in questions])]
        truth = [normalize_answer(q.answer) for q in questions]
        scores[kind] = {
            "accuracy": accuracy(answers, truth),
            "majority": majority(truth),
            "count": len(truth),
        }
        if kind == "yes_no":
            scores[kind] |= pope(answers, truth)
    mean = {k: float(np.mean([s[k] for s in scores.values()])) for k in ("accuracy", "majority")}
    return scores | {"mean": mean}
