"""Messages and their pictures -> an example: markers are counted, turns must alternate."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from janus_jax.data import reasons
from janus_jax.data.examples import Example, Generation, Text, Understanding
from janus_jax.data.layouts.base import LayoutOptions, words
from janus_jax.data.pictures import Unusable, find_picture
from janus_jax.processing.tokenizer import IMAGE

# What marks the place of a picture in a text, here and in Janus's own prompts.
_MARKER = re.compile(rf"<image>|{re.escape(IMAGE)}")
_LEADING = re.compile(rf"(?:\s*{re.escape(IMAGE)})+\s*")

_ROLES = {
    **dict.fromkeys(("user", "human", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "answer"), "assistant"),
    "system": "system",
}


@dataclasses.dataclass(frozen=True)
class Message:
    """What somebody says.

    Attributes:
      role: as the file names it.
      text: with a marker for each of its pictures.
      pictures: those that the message brings itself, for the first of its markers; None stands for the next
        of the record's list.
      learn: an answer that is not learnt is context.
    """

    role: str
    text: str
    pictures: tuple[Any, ...] = ()
    learn: bool = True


def marked(text: str) -> str:
    """The text with `<image>` as the marker that the encoder knows."""
    return _MARKER.sub(IMAGE, text)


def example_of(
    messages: Sequence[Message],
    listed: Sequence[Any],
    options: LayoutOptions,
    picture_first: bool = False,
) -> Example:
    """The example of a conversation.

    Args:
      messages: in their order, the system's first.
      listed: pictures that the record has beside the messages, in the order of the markers.
      options: of the source.
      picture_first: a single picture stands before its question wherever its marker was, as LLaVA trains.

    Raises:
      Unusable: the record cannot be an example.
    """
    system, turns, values = _turns(messages, listed)
    system = system if system is not None else options.system
    pictures = [find_picture(value, options.roots) for value in values]
    if options.draws_pictures:
        return _drawn(turns, pictures)
    if any(IMAGE in answer for _, answer in turns):
        raise Unusable(reasons.PICTURE_IN_ANSWER)
    if options.task == "text" and pictures:
        raise Unusable(reasons.PICTURE_IN_TEXT)
    turns = _placed(turns, len(pictures), picture_first)
    for question, answer in turns:
        words(answer, reasons.EMPTY_ANSWER)
        words(question, reasons.EMPTY_QUESTION)
    if not pictures:
        return Text(turns=turns, system=system)
    return Understanding(images=pictures, turns=turns, system=system)


def _turns(
    messages: Sequence[Message], listed: Sequence[Any]
) -> tuple[str | None, list[tuple[str, str]], list[Any]]:
    """(system, (question, answer) with markers, values of the pictures in the order of the markers)."""
    system, said, values, waiting = None, [], [], list(listed)
    for position, message in enumerate(messages):
        role = _ROLES.get(message.role.strip().lower())
        if role is None:
            raise Unusable(reasons.UNKNOWN_ROLE, message.role)
        text = marked(message.text)
        if role == "system":
            if position:
                raise Unusable(reasons.TURN_ORDER, "a system message after others")
            system = text.strip()
            continue
        if role != ("assistant" if len(said) % 2 else "user"):
            raise Unusable(reasons.TURN_ORDER, f"message {position + 1} is of the {role}")
        own = list(message.pictures)
        for _ in range(text.count(IMAGE)):
            value = own.pop(0) if own else None
            if value is None:
                if not waiting:
                    raise Unusable(reasons.MORE_MARKERS, _counts(messages, listed))
                value = waiting.pop(0)
            values.append(value)
        said.append((role, text.strip(), message.learn))
    if len(said) % 2 or not said:
        raise Unusable(reasons.TURN_ORDER, "the last question has no answer" if said else "none")
    said = _learnt(said)
    turns = [(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2)]
    if len(waiting) == 1 and not values:  # and one picture alone needs no marker
        turns[0] = (f"{IMAGE}\n{turns[0][0]}", turns[0][1])
        return system, turns, waiting
    if waiting:
        raise Unusable(reasons.FEWER_MARKERS, f"{len(values)} for {len(listed)}")
    return system, turns, values[: sum(q.count(IMAGE) + a.count(IMAGE) for q, a in turns)]


def _counts(messages: Sequence[Message], listed: Sequence[Any]) -> str:
    """How many pictures and markers there are: one in an answer is often a word of the answer, and no picture."""
    pictures = len(listed) + sum(value is not None for m in messages for value in m.pictures)
    markers = [(_ROLES.get(m.role.strip().lower()), len(_MARKER.findall(m.text))) for m in messages]
    answers = sum(count for role, count in markers if role == "assistant")
    where = f", {answers} in what the assistant says" if answers else ""
    return f"{sum(count for _, count in markers)} for {pictures}{where}"


def _learnt(said: list[tuple[str, str, bool]]) -> list[tuple[str, str, bool]]:
    """Without answers at the end that are not to be learnt; such an answer before others is refused."""
    while said and not said[-1][2]:
        said = said[:-2]
    if not said or not all(learn for _, _, learn in said[1::2]):
        raise Unusable(
            reasons.NOT_LEARNT, "it is context of later ones" if said else "no answer is learnt"
        )
    return said


def _placed(
    turns: Sequence[tuple[str, str]], pictures: int, picture_first: bool
) -> list[tuple[str, str]]:
    """Markers that begin a question get a line each, as Janus has them."""
    placed = []
    for question, answer in turns:
        if picture_first and pictures == 1 and IMAGE in question:
            question = f"{IMAGE}\n{question.replace(IMAGE, '').strip()}"
        elif found := _LEADING.match(question):
            question = f"{IMAGE}\n" * found[0].count(IMAGE) + question[found.end() :]
        placed.append((question, answer))
    return placed


def _drawn(turns: Sequence[tuple[str, str]], pictures: Sequence[Any]) -> Generation:
    """A request to draw: a question without pictures, whose answer is one."""
    if len(turns) != 1:
        raise Unusable(reasons.TURN_ORDER, f"{len(turns)} turns of a request to draw instead of 1")
    [(question, answer)] = turns
    if not pictures or answer != IMAGE:
        if IMAGE in question and len(pictures):
            raise Unusable(reasons.PICTURE_IN_PROMPT)
        raise Unusable(reasons.NO_PICTURE, "the answer of a request to draw must be <image>")
    if IMAGE in question:
        raise Unusable(reasons.PICTURE_IN_PROMPT)
    return Generation(prompt=words(question, reasons.EMPTY_QUESTION), picture=pictures[0])
