"""GenEval's rules (Ghosh et al. 2023): whether the objects that a detector found are those that a prompt asks for.

Plain numbers in, plain numbers out: any detector can be judged by them, and the detections that the official
script keeps in its `results.jsonl` can be judged again. The thresholds and the order of comparisons are the
official ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import UserError

COLORS = tuple("red orange yellow green blue purple pink brown black white".split())
RELATIONS = ("left of", "right of", "above", "below")
Boxes = Sequence[Sequence[float]]  # [x1, y1, x2, y2, score] each, in pixels


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The official values.

    Attributes:
      score: a detection must be surer than this.
      counting_score: the same for the task "counting".
      per_class: how many detections of a class are kept, the surest.
      position: by what share of both objects' sizes centres must lie apart before that counts.
    """

    score: float = 0.3
    counting_score: float = 0.9
    per_class: int = 16
    position: float = 0.1


@dataclasses.dataclass(frozen=True)
class Objects:
    """What was found in one picture.

    Attributes:
      boxes: class -> float32 [N, 5], x1, y1, x2, y2 and score.
      colors: class -> the name of a colour for each box; {} where none were looked at.
    """

    boxes: Mapping[str, np.ndarray]
    colors: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a picture is right.

    Attributes:
      correct: None if that depends on colours that are not known.
      reasons: what is wrong, or not known.
    """

    correct: bool | None
    reasons: tuple[str, ...] = ()


def kept(objects: Objects, tag: str, thresholds: Thresholds | None = None) -> Objects:
    """The detections that count for a task, the surest first; classes without any are left out."""
    limits = thresholds or Thresholds()
    least = limits.counting_score if tag == "counting" else limits.score
    boxes, colors = {}, {}
    for name, found in objects.boxes.items():
        order = np.argsort(found[:, 4])[::-1]
        order = order[found[order, 4] > least][: limits.per_class]
        if len(order):
            boxes[name] = found[order]
            if name in objects.colors:
                colors[name] = [objects.colors[name][i] for i in order]
    return Objects(boxes, colors)


def relations(a: np.ndarray, b: np.ndarray, position: float = Thresholds.position) -> set[str]:
    """Where box `a` lies of box `b` (float32 [>= 4]): none, one or two of `RELATIONS`.

    The distance of the centres, less a share of both sizes, has to be more than half of the whole distance.
    """
    a, b = (np.asarray(box[:4], np.float32).reshape(2, 2) for box in (a, b))
    offset = a.mean(axis=0) - b.mean(axis=0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    beyond = np.maximum(np.abs(offset) - position * sizes, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    x, y = beyond / np.linalg.norm(offset)
    found = (x < -0.5, x > 0.5, y < -0.5, y > 0.5)
    return {name for name, is_so in zip(RELATIONS, found, strict=True) if is_so}


def judge(
    objects: Objects, metadata: Mapping[str, Any], thresholds: Thresholds | None = None
) -> Verdict:
    """Judges a picture.

    Every entry of "include" must hold, and none of "exclude" may. An entry asks for a `count` of a class; of
    its colour and position, only the `count` surest objects are looked at, each against each object of the
    entry that the position refers to. An entry that refers to one which does not hold does not hold either.

    Args:
      objects: all detections; see `kept`.
      metadata: of the prompt: "tag", "include", "exclude".
      thresholds: other ones than the official.
    """
    limits = thresholds or Thresholds()
    objects = kept(objects, metadata["tag"], limits)
    reasons: list[str] = []
    unknown = False
    groups: list[np.ndarray | None] = []
    for entry in metadata.get("include", []):
        name, count = entry["class"], entry["count"]
        found = objects.boxes.get(name, np.zeros((0, 5), np.float32))[:count]
        wrong = ""
        if len(found) < count:
            wrong = f"{len(found)} of {count} {name}"
        elif "color" in entry:
            colors = list(objects.colors.get(name, ()))[:count]
            unknown = unknown or not colors
            if colors and colors.count(entry["color"]) < count:
                wrong = f"{colors.count(entry['color'])} of {count} {name} {entry['color']}: {', '.join(colors)}"
        if not wrong and "position" in entry:
            wrong = _misplaced(found, entry, groups, limits.position)
        if wrong:
            reasons.append(wrong)
        groups.append(None if wrong else found)
    for entry in metadata.get("exclude", []):
        there = len(objects.boxes.get(entry["class"], ()))
        if there >= entry["count"]:
            reasons.append(f"{there} {entry['class']}, which must be fewer than {entry['count']}")
    if reasons:
        return Verdict(False, tuple(reasons))
    return Verdict(None, ("the colours are not known",)) if unknown else Verdict(True)


def _misplaced(
    found: np.ndarray,
    entry: Mapping[str, Any],
    groups: Sequence[np.ndarray | None],
    position: float,
) -> str:
    """What is wrong with where objects are; "" if nothing is."""
    relation, number = entry["position"]
    target = groups[number]
    if target is None:
        return f"nothing that {entry['class']} could be {relation}"
    for box in found:
        for other in target:
            if relation not in (there := relations(box, other, position)):
                where = " and ".join(sorted(there)) or "beside it in no direction"
                return f"{entry['class']} not {relation} its target, but {where}"
    return ""


def check_metadata(metadata: Any, where: str) -> None:
    """Raises UserError for conditions that the rules cannot read."""
    try:
        sound = isinstance(metadata["tag"], str) and isinstance(metadata["prompt"], str)
        for i, entry in enumerate(metadata["include"]):
            sound = sound and _is_entry(entry) and entry.get("color", "red") in COLORS
            if "position" in entry:
                relation, number = entry["position"]
                sound = sound and relation in RELATIONS and type(number) is int
                sound = sound and number in range(i)
        sound = sound and all(map(_is_entry, metadata.get("exclude", [])))
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f'{where}: these are no conditions of GenEval: "tag", "prompt" and "include", a list of '
            '{"class", "count", "color", "position": [relation, number of an earlier entry]}'
        )


def _is_entry(entry: Mapping[str, Any]) -> bool:
    count = entry["count"]
    return isinstance(entry["class"], str) and type(count) is int and count > 0
