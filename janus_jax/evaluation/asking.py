"""Asking a model the questions of a benchmark: which, in what order, in batches that a bad one does not stop."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from janus_jax.errors import UserError
from janus_jax.evaluation.predictions import ANSWER, FAILED, UNREADABLE
from janus_jax.evaluation.understanding import Items, Prompt, make_prompt
from janus_jax.evaluation.understanding import Protocol as Rules
from janus_jax.untrusted import printable

_ROTATED = 10**6  # MMBench: rotations of question i have the indices i + k * 10^6
_REASON = 300  # letters of why a question has no answer
_TRIED = 16  # questions whose pictures are looked at before anything is asked

Line = dict[str, str]


class Asked(Protocol):
    """What questions are put to: a `Predictor` that takes the chat template of a protocol."""

    def prompting(self, template: str, system_prompt: str = "") -> Asked: ...

    def answer(self, images: Sequence[Any], questions: Sequence[str], **sampling: Any) -> list[str]:
        """`images[i]` is a picture uint8 [h, w, 3], or a list of them where a question has several."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark under a protocol.

    Attributes:
      items: all questions of the split.
      protocol: how they are asked.
      indices: those that are asked.
    """

    items: Items
    protocol: Rules
    indices: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.protocol.name}/{self.protocol.benchmark}"

    @property
    def partial(self) -> bool:
        return len(self.indices) < len(self.items)


def make_task(items: Items, protocol: Rules, limit: int | None = None) -> Task:
    """A task of all questions, or of at most `limit`, drawn at random but always the same.

    A regular distance would meet what repeats in a file: POPE's questions are yes and no by turns. Those of a
    smaller limit are among those of a larger one. Questions that are counted together, as MME's two about a
    picture and MMBench's rotations, stay together; one such group is always asked.

    Raises:
      UserError: no number of questions.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UserError(f"a limit must be 1 question or more, not {limit!r}")
    if limit is None or limit >= len(items):
        return Task(items, protocol, tuple(items.indices))
    groups: dict[str, list[str]] = {}
    for index in items.indices:
        groups.setdefault(_group(items, index), []).append(index)
    order = list(groups.values())
    random.Random(0).shuffle(order)
    kept = set(order[0])
    for group in order[1:]:
        if len(kept) + len(group) > limit:
            break
        kept.update(group)
    return Task(items, protocol, tuple(index for index in items.indices if index in kept))


def check_pictures(task: Task, images: str, indices: Sequence[str] | None = None) -> None:
    """Looks at pictures of a few questions, spread evenly, before time goes into asking without any.

    Args:
      task: whose pictures.
      images: the option that says where pictures are, for the message, such as "--images".
      indices: of the questions; by default all that are asked.

    Raises:
      UserError: not one of them can be read.
    """
    indices = task.indices if indices is None else indices
    tried = indices[:: max(1, -(-len(indices) // _TRIED))]
    first = ""
    for index in tried:
        (question,) = _read(task, [index])
        if not question.unreadable:
            return
        first = first or question.unreadable
    if tried:
        raise UserError(
            f"{task.protocol.benchmark}: no picture can be read ({len(tried)} tried), the first one: "
            f"{first}: give the directory of the pictures with {images}, or get the file again"
        )


def ask(
    predictor: Asked,
    task: Task,
    done: Mapping[str, tuple[str, str]],
    batch_size: int,
    add: Callable[[list[Line]], None],
    agree: Callable[[list[str]], None] = lambda unreadable: None,
) -> None:
    """Asks what is not `done` (`Predictions.done`), greedily; `add` gets the lines of each batch (`Predictions`).

    Questions of about the same length are asked together, the shortest first. While a batch is answered the
    pictures of the next one are read, so two batches of pictures are in memory.

    Args:
      predictor, task: what is asked what.
      done: index -> what is known; those are not asked.
      batch_size: questions at once.
      add: called with the lines of a batch.
      agree: called before a batch is asked with the indices whose pictures cannot be read: several processes must
        ask alike.

    Raises:
      UserError: the model cannot be asked even the shortest questions, or none in this template.
    """
    predictor = predictor.prompting(task.protocol.template, task.protocol.system_prompt)
    batches = _batches(task, done, batch_size)
    answered = any(kind == ANSWER for kind, _ in done.values())
    with ThreadPoolExecutor(1) as reader:
        for batch in _ahead(reader, batches, lambda indices: _read(task, indices)):
            agree([question.index for question in batch if question.unreadable])
            kinds, texts = _answers(predictor, task.protocol.max_new_tokens, batch, answered)
            answered = answered or ANSWER in kinds
            add(
                [
                    {
                        "protocol": task.protocol.name,
                        "benchmark": task.protocol.benchmark,
                        "index": question.index,
                        kind: text,
                    }
                    for question, kind, text in zip(batch, kinds, texts, strict=True)
                ]
            )


@dataclasses.dataclass(frozen=True)
class _Question:
    """A question with its pictures; `unreadable`: why they are not there."""

    index: str
    text: str
    pictures: list[np.ndarray]
    unreadable: str = ""


def _batches(task: Task, done: Collection[str], size: int) -> Iterator[list[str]]:
    """Indices of each batch, the shortest questions first."""
    lengths = {}
    for index in task.indices:
        if index not in done:
            prompt = make_prompt(task.items.find(index), task.protocol)
            lengths[index] = (len(prompt.pictures), len(prompt.text))
    order = sorted(lengths, key=lengths.__getitem__)
    return (order[start : start + size] for start in range(0, len(order), size))


def _ahead(
    reader: ThreadPoolExecutor, batches: Iterator[list[str]], read: Callable[[list[str]], Any]
) -> Iterator[list[_Question]]:
    coming = None
    for batch in batches:
        following = reader.submit(read, batch)
        if coming is not None:
            yield coming.result()
        coming = following
    if coming is not None:
        yield coming.result()


def _read(task: Task, indices: Sequence[str]) -> list[_Question]:
    questions = []
    for index in indices:
        prompt: Prompt = make_prompt(task.items.find(index), task.protocol)
        try:
            questions.append(_Question(index, prompt.question, prompt.load_pictures()))
        except UserError as error:
            reason = printable(error, _REASON)
            questions.append(_Question(index, prompt.question, [], reason or "unknown"))
    return questions


def _answers(
    predictor: Asked, max_new_tokens: int, batch: Sequence[_Question], answered: bool
) -> tuple[list[str], list[str]]:
    """(which of the three kinds, text) of each question."""
    found = {q.index: (UNREADABLE, q.unreadable) for q in batch if q.unreadable}
    asked = [q for q in batch if not q.unreadable]

    def put(questions: Sequence[_Question]) -> list[str]:
        images = [q.pictures[0] if len(q.pictures) == 1 else q.pictures for q in questions]
        texts = [q.text for q in questions]
        answers = predictor.answer(images, texts, max_new_tokens=max_new_tokens, temperature=0.0)
        if len(answers) != len(texts):
            raise RuntimeError(f"{len(texts)} questions got {len(answers)} answers")
        return [str(answer) for answer in answers]

    try:
        if asked:
            answers = put(asked)
            found |= {q.index: (ANSWER, a) for q, a in zip(asked, answers, strict=True)}
    except UserError:
        for question in asked:  # one of them cannot be asked, such as one that is too long
            try:
                found[question.index] = (ANSWER, put([question])[0])
            except UserError as error:
                found[question.index] = (FAILED, printable(error, _REASON))
        if not answered and all(found[q.index][0] == FAILED for q in asked):
            raise
    return [found[q.index][0] for q in batch], [found[q.index][1] for q in batch]


def _group(items: Items, index: str) -> str:
    """What is counted together has the same."""
    if items.benchmark == "mmbench" and index.isdecimal():
        return str(int(index) % _ROTATED)
    return (items.find(index).picture_key if items.benchmark == "mme" else "") or index
