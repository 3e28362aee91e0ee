"""DPG-Bench's score: from answers to the questions about each sample to the numbers of the official script.

    questions = read_questions("dpg_bench.csv", compat=True)
    answers = read_answers("dpg-bench_results_detail.txt", questions)        # of the official script
    scores = score_answers(questions, answers)
    print(scores.overall, scores.l1["attribute"], scores.incomplete)

`compat=True` (of `read_questions`) gives the numbers of the official script, quirks and all, which published
numbers have; without it every quirk is mended. The quirks, by name: `skips_row_0` and `replaces_split_items`
(see `read_questions`), `exact_yes` (`is_yes`), `cascade_in_order` and `drops_orphans` (`zeroed`),
`last_crop_categories` (`score_answers`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.generation.prompts import Prompt, PromptSet, dpg_prompts
from janus_jax.evaluation.generation.questions import L1_CATEGORIES, Question, Questions

SAMPLES = 4  # of each prompt in a whole run
# A crop: number of the question -> whether it was answered by yes.
Crop = Mapping[int, bool]
_DETAIL = re.compile(
    r"(?P<path>.*), \((?P<box>-?\d+, -?\d+, -?\d+, -?\d+)\), (?P<question>.*), (?P<answer>[^,]*)"
)


class MissingParent(Exception):
    """A question depends on one that was not asked: the official script gives the whole picture up."""


@dataclasses.dataclass(frozen=True)
class DpgScores:
    """Shares times 100.

    Attributes:
      overall: the mean over pictures.
      l1: category -> its score, in the order of the paper's columns.
      l2: category, such as "attribute - color" -> its score.
      pictures: name -> the score of each sample, not times 100.
      dropped: pictures that the official script leaves out, as it cannot score them.
      incomplete: why this is not the benchmark's number; "" if it is.
    """

    overall: float
    l1: Mapping[str, float]
    l2: Mapping[str, float]
    pictures: Mapping[str, tuple[float, ...]]
    dropped: tuple[str, ...]
    incomplete: str

    def table(self) -> dict[str, dict[str, float]]:
        """Category -> score; the last row is the overall one."""
        rows = {name: {"score": value} for name, value in self.l1.items()}
        return rows | {"overall": {"score": self.overall, "count": len(self.pictures)}}


def is_yes(answer: str, compat: bool) -> bool:
    """Whether a judge's answer is yes.

    `exact_yes`: with `compat` only "yes" itself is, and neither "Yes" nor "yes."
    """
    return answer == "yes" if compat else answer.strip().rstrip(".!").lower() == "yes"


def zeroed(questions: Sequence[Question], crop: Crop, compat: bool) -> dict[int, bool]:
    """The answers of one sample, without those whose parents were answered by no.

    `cascade_in_order`: with `compat` questions are gone through once in the order of the file, over answers
    that change on the way; one that stands before its parent does not see what becomes of that. Otherwise a
    question counts if it and all that it depends on, however far, were answered by yes.

    Raises:
      MissingParent: with `compat`, where a parent is missing (`drops_orphans`).
    """
    answers = {question.number: bool(crop[question.number]) for question in questions}
    if compat:
        for question in questions:
            for parent in question.parents:
                if parent not in answers:
                    raise MissingParent(f"{question.number} depends on {parent}")
                if not answers[parent]:
                    answers[question.number] = False
                    break
        return answers

    changed = True
    while changed:
        changed = False
        for question in questions:
            if answers[question.number] and not all(answers[p] for p in question.parents):
                answers[question.number], changed = False, True
    return answers


def score_answers(questions: Questions, answers: Mapping[str, Sequence[Crop]]) -> DpgScores:
    """Scores pictures.

    `last_crop_categories`: with `compat` the categories are pooled from the answers of the last sample alone,
    as they were given, and not zeroed; otherwise from all samples, zeroed as in the overall score.

    Args:
      questions: `compat` is how they were read.
      answers: name of a picture -> its samples in order, each {number of a question: whether yes}.

    Raises:
      UserError: no pictures, or answers that do not fit the questions.
    """
    compat = questions.compat
    pictures: dict[str, tuple[float, ...]] = {}
    pooled: dict[str, list[bool]] = {}
    dropped = []
    for name, crops in answers.items():
        asked = questions.of.get(name)
        if asked is None:
            if not compat:
                raise UserError(f"there are no questions about the picture {untrusted.shown(name)}")
            dropped.append(name)
            continue
        _check_crops(name, asked, crops)
        try:
            kept = [zeroed(asked, crop, compat) for crop in crops]
        except MissingParent:
            dropped.append(name)
            continue
        pictures[name] = tuple(sum(crop.values()) / len(crop) for crop in kept)
        for crop in crops[-1:] if compat else kept:
            for question in asked:
                pooled.setdefault(question.category, []).append(bool(crop[question.number]))
    if not pictures:
        raise UserError("there are no answers of DPG-Bench that can be scored")
    by_l1: dict[str, list[bool]] = {}
    for category, values in pooled.items():
        by_l1.setdefault(category.split("-")[0].strip(), []).extend(values)
    order = [name for name in L1_CATEGORIES if name in by_l1]
    order += sorted(name for name in by_l1 if name not in L1_CATEGORIES)
    return DpgScores(
        overall=100 * float(np.mean([np.mean(scores) for scores in pictures.values()])),
        l1={name: 100 * float(np.mean(by_l1[name])) for name in order},
        l2={name: 100 * float(np.mean(pooled[name])) for name in sorted(pooled)},
        pictures=pictures,
        dropped=tuple(dropped),
        incomplete=_incomplete(pictures, dropped),
    )


def read_answers(path: str | Path, questions: Questions) -> dict[str, list[dict[int, bool]]]:
    """Reads the `..._detail.txt` of the official script: picture, crop, question and answer a line.

    The lines of a crop are in the order of its questions, and are matched by that; the texts must agree.

    Raises:
      UserError: unreadable, or lines that are not the answers to these questions; the message names the line.
    """
    shown = untrusted.printable(path, 200)
    lines = untrusted.read_text(path).split("\n")
    found: dict[str, dict[str, dict[int, bool]]] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        where = f"{shown}, line {number}"
        match = _DETAIL.fullmatch(line)
        if match is None:
            raise UserError(
                f"{where} must be 'picture, (x1, y1, x2, y2), question, answer', not {untrusted.shown(line)}"
            )
        name = _name(match["path"])
        asked = questions.of.get(name)
        if asked is None:
            raise UserError(f"{where}: there are no questions about {untrusted.shown(name)}")
        crop = found.setdefault(name, {}).setdefault(match["box"], {})
        if len(crop) == len(asked):
            raise UserError(
                f"{where}: all questions about this part of {name} were answered before"
            )
        question = asked[len(crop)]
        if question.text != match["question"].strip():
            raise UserError(
                f"{where}: the question is {untrusted.shown(match['question'])}, not "
                f"{untrusted.shown(question.text)}: "
                "read the questions with the same compat as the script that wrote this"
            )
        crop[question.number] = is_yes(match["answer"], questions.compat)
    return {name: list(crops.values()) for name, crops in found.items()}


def read_picture_scores(path: str | Path) -> dict[str, tuple[float, ...]]:
    """Reads the result file of the official script: picture -> the score of each sample; not its summary.

    Raises:
      UserError: unreadable, no pictures, one twice, or a mean that is not that of its samples.
    """
    shown = untrusted.printable(path, 200)
    pictures: dict[str, tuple[float, ...]] = {}
    for number, line in enumerate(untrusted.read_text(path).split("\n"), 1):
        name, *values = line.split(", ")
        try:
            *scores, mean = map(float, values)
        except ValueError:
            continue  # the summary at the end
        if not scores:
            continue
        name = _name(name)
        if name in pictures:
            raise UserError(
                f"{shown}, line {number}: the picture {untrusted.shown(name)} is there twice"
            )
        if not abs(np.mean(scores) - mean) < 1e-6:
            raise UserError(
                f"{shown}, line {number}: {mean} is not the mean of the scores before it"
            )
        pictures[name] = tuple(scores)
    if not pictures:
        raise UserError(f"{shown} has no scores of pictures: is it a result file of DPG-Bench?")
    return pictures


def overall_of(pictures: Mapping[str, Sequence[float]]) -> tuple[float, str]:
    """(the score of pictures as `read_picture_scores` returns them, times 100; why it is incomplete or "")."""
    mean = 100 * float(np.mean([np.mean(scores) for scores in pictures.values()]))
    return mean, _incomplete(pictures, [])


def expected(prompts: PromptSet, questions: Questions) -> list[Prompt]:
    """The prompts of a set that have questions.

    Raises:
      UserError: none has.
    """
    found = [prompt for prompt in prompts.prompts if prompt.key in questions.of]
    if not found:
        raise UserError(
            f"none of the prompts of {prompts.name} has questions: are they DPG-Bench's?"
        )
    return found


def _name(path: str) -> str:
    """The name of a picture, to its first dot, as the official script takes it."""
    return re.split(r"[/\\]", path)[-1].split(".")[0]


def _check_crops(name: str, asked: Sequence[Question], crops: Sequence[Crop]) -> None:
    if not crops:
        raise UserError(f"the picture {untrusted.shown(name)} has no answers")
    for i, crop in enumerate(crops):
        missing = [q.number for q in asked if q.number not in crop]
        if missing:
            raise UserError(
                f"sample {i} of the picture {untrusted.shown(name)}: question {missing[0]} was not answered"
            )


def _incomplete(pictures: Mapping[str, Sequence[float]], dropped: Sequence[str]) -> str:
    """Why a score is not the benchmark's; "" if it is: what the official script drops is not in its numbers."""
    whole = {prompt.key for prompt in dpg_prompts().prompts}
    if strange := len(pictures.keys() - whole):
        return f"pictures that are not DPG-Bench's: {strange}"
    there = len(whole & {*pictures, *dropped})
    if there != len(whole):
        return f"{there} of {len(whole)} prompts"
    counts = {len(scores) for scores in pictures.values()}
    if counts != {SAMPLES}:
        return f"{min(counts)} to {max(counts)} samples a prompt, not {SAMPLES}"
    return ""
