"""What a tiny model can do: old things and new ones, drawn and asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.quality.new_things.world import (
    OLD,
    UNSTYLED,
    JudgedWorld,
    WideWorld,
    new_scene,
    styled_caption,
    styled_scene,
)
from janus_jax import Janus
from janus_jax.emoji.geneval import Prompt, mini_geneval, score_pictures
from janus_jax.emoji.judge import Judge
from janus_jax.emoji.language import caption, question
from janus_jax.emoji.questions import question_accuracy
from janus_jax.emoji.scene import render
from janus_jax.evaluation import normalize_answer

SEED = 2_000_003
ANSWER_TOKENS = 24


def old_scores(janus: Janus, count: int) -> dict[str, float]:
    """`draw`: the mean of mini-GenEval's six kinds; `answer`: of seven kinds of questions; `count` of each."""
    answer = lambda pictures, texts: _answers(janus, pictures, texts)
    drawn = mini_geneval(lambda prompts: _draw(janus, prompts), OLD, count)
    asked = question_accuracy(answer, OLD, count)
    return {"draw": drawn["mean"]["plain"], "answer": asked["mean"]["accuracy"]}


def object_scores(janus: Janus, count: int) -> dict[str, float]:
    """`count` pictures of each kind with a new object, and questions about such pictures."""
    prompts, pictures, questions = [], [], []
    for kind in ("single_object", "two_object", "position"):
        for i in range(count):
            rng = np.random.default_rng((SEED, len(kind), i))
            scene = new_scene(rng, kind)
            prompts.append(Prompt(caption(scene, rng, background=0.0), scene))
            asked = ("what", "where")[i % 2] if kind != "position" else "relation"
            questions.append(question(scene, asked, rng, WideWorld()))
            pictures.append(render(scene, WideWorld()))
    drawn = _judged(janus, prompts)
    answers = _answers(janus, np.stack(pictures), [q.text for q in questions])
    right = [
        normalize_answer(a) == normalize_answer(q.answer)
        for a, q in zip(answers, questions, strict=True)
    ]
    one = slice(0, count)
    return {
        "draw": drawn(slice(None)),
        "draw, alone": drawn(one),
        "draw, with an old one": drawn(slice(count, None)),
        "answer": float(np.mean(right)),
        "answer, what": float(
            np.mean([r for r, q in zip(right, questions, strict=True) if q.kind == "what"])
        ),
    }


def style_scores(janus: Janus, count: int) -> dict[str, float]:
    """`count` pictures in the style of each kind: of objects that were shown in it, and of others."""
    scores = {}
    shown = tuple(name for name in OLD.names if name not in UNSTYLED)
    for label, names in (("shown in it", shown), ("never shown in it", UNSTYLED)):
        prompts = []
        for kind in ("single_object", "two_object"):
            for i in range(count):
                rng = np.random.default_rng((SEED, len(kind), len(names), i))
                scene = styled_scene(rng, kind, names)
                prompts.append(Prompt(styled_caption(scene), scene))
        scores[f"draw, {label}"] = _judged(janus, prompts)(slice(None))
    return {"draw": float(np.mean(list(scores.values()))), **scores}


def ceilings(reconstruct, count: int) -> dict[str, float]:
    """What the image tokenizer lets any model get: true scenes, through it, judged."""
    found = {}
    shown = {"objects": [], "style": []}
    for i in range(count):
        for kind in ("single_object", "two_object"):
            rng = np.random.default_rng((SEED, len(kind), i))
            shown["objects"].append(new_scene(rng, kind))
            shown["style"].append(styled_scene(rng, kind, OLD.names))
    for name, scenes in shown.items():
        pictures = reconstruct(np.stack([render(s, WideWorld()) for s in scenes]))
        prompts = [Prompt("", scene) for scene in scenes]
        found[name] = score_pictures(Judge(JudgedWorld()), prompts, pictures)["plain"]
    return found


def _judged(janus: Janus, prompts: Sequence[Prompt]):
    """The share right of a slice of the pictures drawn to `prompts`."""
    pictures, judge = _draw(janus, [p.text for p in prompts]), Judge(JudgedWorld())
    return lambda part: score_pictures(judge, prompts[part], pictures[part])["plain"]


def _draw(janus: Janus, prompts: Sequence[str]) -> np.ndarray:
    return janus.generate_arrays(list(prompts), seed=0)


def _answers(janus: Janus, pictures: np.ndarray, texts: Sequence[str]) -> list[str]:
    return janus.answer_batch(list(pictures), list(texts), max_new_tokens=ANSWER_TOKENS)
