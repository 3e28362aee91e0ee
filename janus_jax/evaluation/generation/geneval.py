"""GenEval: its result files read, its score as the official script adds it up, its rules over kept detections.

scores = score_results(read_results("results.jsonl"))           # what the official evaluator wrote
print(scores.overall, scores.tasks["counting"].share, scores.incomplete)
again = score_results(replay(read_results("results.jsonl")))    # the rules once more, over its detections
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.generation.prompts import GENEVAL_TASKS, geneval_prompts
from janus_jax.evaluation.generation.rules import (
    COLORS,
    Objects,
    Thresholds,
    check_metadata,
    judge,
)
from janus_jax.evaluation.tables import MEAN

SAMPLES = 4  # of each prompt in a whole run


@dataclasses.dataclass(frozen=True)
class Result:
    """One picture.

    Attributes:
      filename: of the picture, such as "out/00000/samples/0000.png".
      metadata: of its prompt: "tag", "prompt", "include", "exclude".
      correct: None where that is not known.
      reason: what is wrong.
      objects: what was found; None if the file does not say.
    """

    filename: str
    metadata: Mapping[str, Any]
    correct: bool | None
    reason: str = ""
    objects: Objects | None = None


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """Right pictures of a task."""

    correct: int
    count: int

    @property
    def share(self) -> float:
        return self.correct / self.count


@dataclasses.dataclass(frozen=True)
class GenEvalScores:
    """What the official summary prints.

    Attributes:
      overall: the unweighted mean of the tasks' shares, of those that are there.
      tasks: task -> its score, in the order of the paper's columns.
      images: the share of right pictures.
      prompts: the share of prompts with at least one right picture.
      image_count, prompt_count: how many there are.
      incomplete: why this is not the benchmark's number: prompts, tasks or pictures are missing; "" if it is.
    """

    overall: float
    tasks: Mapping[str, TaskScore]
    images: float
    prompts: float
    image_count: int
    prompt_count: int
    incomplete: str

    def table(self) -> dict[str, dict[str, float]]:
        """Task -> share and count; the last row is the mean of the tasks."""
        rows = {
            name: {"share": task.share, "count": task.count} for name, task in self.tasks.items()
        }
        return rows | {MEAN: {"share": self.overall, "count": self.image_count}}


def read_results(path: str | Path) -> list[Result]:
    """Reads the official `results.jsonl`, or a file of detections in its form.

    A line is {"filename", "tag", "prompt", "metadata", "details", "correct", "reason"}. "metadata" and
    "details" are JSON texts, as in the official file, or objects. "details" is {class: [[x1, y1, x2, y2,
    score], ...]}; with "colors", {class: [a colour for each box]}, the colour rules can be judged, too.
    "correct" may be missing, and "tag" and "prompt", which are in the metadata. A first line {"header": ...} is
    passed over.

    Raises:
      UserError: unreadable, empty, or a line that is none of these; the message names the line.
    """
    path = Path(path)
    shown = untrusted.printable(path, 200)
    results: list[Result] = []
    names: set[str] = set()
    lines = untrusted.read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{shown}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            cut = "; the writer was killed, or is still at work" if number == len(lines) else ""
            raise UserError(f"{where} is no JSON: {untrusted.shown(line)}{cut}") from error
        if isinstance(fields, dict) and number == 1 and set(fields) == {"header"}:
            continue
        result = _result(fields, where)
        if result.filename in names:
            raise UserError(f"{where}: {untrusted.shown(result.filename)} is there twice")
        names.add(result.filename)
        results.append(result)
    if not results:
        raise UserError(f"{shown} has no results")
    return results


def replay(results: Sequence[Result], thresholds: Thresholds | None = None) -> list[Result]:
    """The same pictures judged by `rules.judge` over their detections.

    Where the colours of found objects are not known, as in official files, `correct` stays what the file says;
    None if it says nothing.

    Raises:
      UserError: a picture has no detections.
    """
    judged = []
    for result in results:
        if result.objects is None:
            raise UserError(
                f'{untrusted.shown(result.filename)} has no "details", which the rules are judged by'
            )
        verdict = judge(result.objects, result.metadata, thresholds)
        if verdict.correct is None:
            judged.append(result)
        else:
            reason = "; ".join(verdict.reasons)
            judged.append(dataclasses.replace(result, correct=verdict.correct, reason=reason))
    return judged


def score_results(results: Sequence[Result]) -> GenEvalScores:
    """Adds results up as the official summary does.

    Raises:
      UserError: no results, or of some it is not known whether they are right.
    """
    if not results:
        raise UserError("there are no results of GenEval")
    unknown = [result for result in results if result.correct is None]
    if unknown:
        raise UserError(
            f"of {len(unknown)} pictures it is not known whether they are right, the first is "
            f'{untrusted.shown(unknown[0].filename)}: their colours are needed ("colors"), or the official verdict'
        )
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    of_prompt: dict[str, list[bool]] = {}
    for result in results:
        tag = result.metadata["tag"]
        count[tag] += 1
        right[tag] += bool(result.correct)
        of_prompt.setdefault(_identity(result.metadata), []).append(bool(result.correct))
    order = [tag for tag in GENEVAL_TASKS if tag in count]
    order += [tag for tag in count if tag not in GENEVAL_TASKS]
    tasks = {tag: TaskScore(right[tag], count[tag]) for tag in order}
    return GenEvalScores(
        overall=float(np.mean([task.share for task in tasks.values()])),
        tasks=tasks,
        images=sum(right.values()) / len(results),
        prompts=sum(map(any, of_prompt.values())) / len(of_prompt),
        image_count=len(results),
        prompt_count=len(of_prompt),
        incomplete=_incomplete(tasks, {key: len(found) for key, found in of_prompt.items()}),
    )


def result_line(filename: str, metadata: Mapping[str, Any], objects: Objects) -> dict[str, Any]:
    """A line of a file of detections, as `read_results` reads it; the verdict is added where it is known."""
    verdict = judge(objects, metadata)
    line = {
        "filename": filename,
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
        "reason": "; ".join(verdict.reasons),
        "metadata": json.dumps(metadata),
        "details": json.dumps({name: np.asarray(b).tolist() for name, b in objects.boxes.items()}),
        "colors": {name: list(colors) for name, colors in objects.colors.items()},
    }
    return line if verdict.correct is None else line | {"correct": verdict.correct}


def pictures_of(directory: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(picture, metadata of its prompt) of a folder in GenEval's layout, in order of their names.

    Raises:
      UserError: no such folder, none of its pictures, or metadata that are none.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such directory: {untrusted.printable(directory, 200)}")
    folders = sorted(p for p in directory.iterdir() if p.is_dir() and p.name.isdecimal())
    found = False
    for folder in folders:
        metadata = untrusted.read_json(folder / "metadata.jsonl")
        check_metadata(metadata, untrusted.printable(folder / "metadata.jsonl", 200))
        pictures = (folder / "samples").glob("*.png")
        for picture in sorted(p for p in pictures if p.stem.isdecimal()):
            found = True
            yield picture, metadata
    if not found:
        raise UserError(
            f"{untrusted.printable(directory, 200)} has no pictures of GenEval (00000/samples/0000.png, ...)"
        )


def make_objects(details: Any, colors: Any, where: str) -> Objects:
    """Detections from JSON values.

    Raises:
      UserError: they are not {class: [[x1, y1, x2, y2, score], ...]} and {class: [colour of each box]}.
    """
    try:
        boxes = {
            name: np.asarray(found, np.float32).reshape(len(found), 5)
            for name, found in details.items()
        }
        sound = all(isinstance(name, str) and np.isfinite(b).all() for name, b in boxes.items())
        for name, chosen in (colors or {}).items():
            sound = sound and len(chosen) == len(boxes[name]) and set(chosen) <= set(COLORS)
    except (AttributeError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(
            f"{where}: detections must be {{class: [[x1, y1, x2, y2, score], ...]}}, and colors {{class: [one of "
            f"{', '.join(COLORS)} for each box]}}"
        )
    return Objects(boxes, dict(colors or {}))


def _result(fields: Any, where: str) -> Result:
    if not isinstance(fields, dict) or not isinstance(fields.get("filename"), str):
        raise UserError(f'{where}: must be an object with a "filename"')
    metadata = _parsed(fields.get("metadata"), f"{where}, metadata")
    check_metadata(metadata, where)
    if fields.get("tag", metadata["tag"]) != metadata["tag"]:
        raise UserError(
            f"{where}: the tag {untrusted.shown(fields['tag'])} is not that of its metadata"
        )
    correct = fields.get("correct")
    if correct is not None and not isinstance(correct, bool):
        raise UserError(f'{where}: "correct" must be true or false, not {untrusted.shown(correct)}')
    objects = None
    if "details" in fields:
        details = _parsed(fields["details"], f"{where}, details")
        objects = make_objects(details, fields.get("colors"), where)
    return Result(fields["filename"], metadata, correct, str(fields.get("reason") or ""), objects)


def _parsed(value: Any, where: str) -> Any:
    """A value that may be JSON text, as the official file has it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no JSON: {untrusted.shown(value)}") from error


def _identity(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True)


def _incomplete(tasks: Mapping[str, TaskScore], samples: Mapping[str, int]) -> str:
    """Why a score is not the benchmark's; "" if it is. `samples`: identity of a prompt -> its pictures."""
    missing = [tag for tag in GENEVAL_TASKS if tag not in tasks]
    if missing:
        return f"no pictures of {', '.join(missing)}"
    whole = {_identity(prompt.metadata) for prompt in geneval_prompts().prompts}
    if strange := len(samples.keys() - whole):
        return f"prompts that are not GenEval's: {strange}"
    if len(samples) != len(whole):
        return f"{len(samples)} of {len(whole)} prompts"
    counts = set(samples.values())
    if counts != {SAMPLES}:
        return f"{min(counts)} to {max(counts)} pictures a prompt, not {SAMPLES}"
    return ""
