"""mini-GenEval: prompts of GenEval's six kinds, and whether a drawn picture shows what was asked.

Rules of GenEval (Ghosh et al. 2023): a picture is right if every object asked for is there in the right
number, colour and position; the score of a kind is the share of right pictures, the overall score the
unweighted mean of the six kinds. "Strict" also wants nothing extra in the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np

from janus_jax.emoji.judge import Judge, Reading
from janus_jax.emoji.language import caption
from janus_jax.emoji.scene import (
    SCENE_KINDS,
    Placement,
    Scene,
    random_scene,
    relation_between,
    render,
)
from janus_jax.emoji.world import World

# Kinds that combine things, so that combinations can be held out of training.
HELD_OUT_TASKS = ("two_object", "position", "color_attr", "colors")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and the scene that it describes (the scene's cells are one of many right answers)."""

    text: str
    scene: Scene

    @property
    def task(self) -> str:
        return self.scene.kind


def make_prompts(
    world: World, task: str, count: int, held_out: bool = False, seed: int = 1_000_003
) -> list[Prompt]:
    """`count` prompts of one kind, the same on every machine; none names the background."""
    prompts = []
    for i in range(count):
        rng = np.random.default_rng((seed, SCENE_KINDS.index(task), int(held_out), i))
        scene = random_scene(rng, world, task, held_out)
        prompts.append(Prompt(caption(scene, rng, background=0.0), scene))
    return prompts


def is_right(
    scene: Scene, reading: Reading, look_alikes: Collection[tuple[str, str]] = ()
) -> tuple[bool, bool]:
    """(right, strictly right): is what `scene` asks for in the picture, and is nothing else?

    Args:
      look_alikes: (object, tint) pairs that natural colours satisfy, too (`Judge.look_alikes`).
    """
    seen = reading.detections
    extra_free = len(seen) == len(scene.placements) and reading.unknown == 0

    def match(placement: Placement, d) -> bool:
        natural = d.tint is None and (placement.name, placement.tint) in look_alikes
        return d.name == placement.name and (placement.tint in (None, d.tint) or natural)

    first = scene.placements[0]
    if scene.kind == "counting":
        right = sum(match(first, d) for d in seen) == len(scene.placements)
    elif len(scene.placements) == 1:
        right = any(match(first, d) for d in seen)
    else:
        a = [d for d in seen if match(first, d)]
        b = [d for d in seen if match(scene.placements[1], d)]
        right = bool(a) and bool(b)
        if scene.kind == "position":
            right = any(
                relation_between((x.row, x.column), (y.row, y.column)) == scene.relation
                for x in a
                for y in b
            )
    return right, right and extra_free


def score_pictures(
    judge: Judge, prompts: Sequence[Prompt], pictures: Sequence[np.ndarray]
) -> dict[str, float]:
    """Scores pictures, uint8 [h, w, 3], one or several (in order) to a prompt.

    Returns:
      {"plain": share right, "strict": share strictly right, "count": pictures}.
    """
    per_prompt = len(pictures) // len(prompts)
    results = [
        is_right(prompts[i // per_prompt].scene, judge.read(picture), judge.look_alikes)
        for i, picture in enumerate(pictures)
    ]
    plain, strict = np.mean(results, axis=0)
    return {"plain": float(plain), "strict": float(strict), "count": len(results)}


Draw = Callable[[Sequence[str]], np.ndarray]


def mini_geneval(
    draw: Draw,
    world: World,
    prompts_per_task: int,
    held_out: bool = False,
    tasks: Sequence[str] = SCENE_KINDS,
    seed: int = 1_000_003,
) -> dict[str, dict[str, float]]:
    """Runs the benchmark.

    Args:
      draw: prompts -> uint8 [len(prompts), h, w, 3], one picture each.
      prompts_per_task: pictures of each kind.
      held_out: ask for combinations that training never showed; only `HELD_OUT_TASKS` count then.

    Returns:
      Kind -> {"plain", "strict", "count"}, and "mean" over the kinds.
    """
    judge = Judge(world)
    tasks = [t for t in tasks if not held_out or t in HELD_OUT_TASKS]
    prompts = {t: make_prompts(world, t, prompts_per_task, held_out, seed) for t in tasks}
    flat = [p for t in tasks for p in prompts[t]]
    pictures = draw([p.text for p in flat])
    scores = {}
    for i, task in enumerate(tasks):
        part = pictures[i * prompts_per_task : (i + 1) * prompts_per_task]
        scores[task] = score_pictures(judge, prompts[task], part)
    return scores | {"mean": _mean(scores)}


def _mean(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    keys = ("plain", "strict")
    return {k: float(np.mean([s[k] for s in scores.values()])) for k in keys}


Reconstruct = Callable[[np.ndarray], np.ndarray]


def prove_judge(
    world: World, reconstruct: Reconstruct | None = None, per_task: int = 100
) -> dict[str, dict[str, dict[str, float]]]:
    """What the judge's scores are worth.

    Args:
      reconstruct: uint8 [B, h, w, 3] -> the same through the image tokenizer.

    Returns:
      "true": true scenes (should be 1); "shuffled": each true scene judged by another one's prompt
      (should be about 0); "reconstructed" and "reconstructed_held_out": through the tokenizer, the
      ceiling of any model that draws with it. Each as `mini_geneval` returns it.
    """
    cases: dict[str, tuple[bool, bool]] = {"true": (False, False), "shuffled": (False, False)}
    if reconstruct is not None:
        cases |= {"reconstructed": (True, False), "reconstructed_held_out": (True, True)}
    judge, results = Judge(world), {}
    for case, (through, held_out) in cases.items():
        scores = {}
        for task in HELD_OUT_TASKS if held_out else SCENE_KINDS:
            prompts = make_prompts(world, task, per_task, held_out)
            pictures = np.stack([render(p.scene, world) for p in prompts])
            if through:
                pictures = reconstruct(pictures)
            if case == "shuffled":
                pictures = np.roll(pictures, 1, axis=0)
            scores[task] = score_pictures(judge, prompts, pictures)
        results[case] = scores | {"mean": _mean(scores)}
    return results
