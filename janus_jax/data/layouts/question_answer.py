"""Pictures with questions and answers: The Cauldron, Docmatix, FineVision, and visual question answering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example, Text, Understanding
from janus_jax.data.layouts.base import Draws, LayoutOptions, as_list, layout, pictures_of, words
from janus_jax.data.layouts.conversation import marked
from janus_jax.data.pictures import Unusable
from janus_jax.processing.tokenizer import IMAGE

_RATINGS = "_ratings"


@layout
def question_answer(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """All pictures of a record, then its questions and answers as one conversation.

    They are in `texts`, a list of {user, assistant}, with lists `x_ratings` of numbers beside it; or in
    `question` and `answer` or `answers`, of which one is drawn.
    """
    turns = _rated(_turns(record, draws), record, options)
    pictures = pictures_of(record, options)
    if options.task == "text" and pictures:
        raise Unusable(reasons.PICTURE_IN_TEXT)
    turns = [
        (words(marked(q), reasons.EMPTY_QUESTION), words(a, reasons.EMPTY_ANSWER)) for q, a in turns
    ]
    found = sum(question.count(IMAGE) for question, _ in turns)
    if found > len(pictures):
        raise Unusable(reasons.MORE_MARKERS, f"{found} for {len(pictures)}")
    if 0 < found < len(pictures):
        raise Unusable(reasons.FEWER_MARKERS, f"{found} for {len(pictures)}")
    if not pictures:
        return Text(turns=turns, system=options.system)
    if not found:
        turns[0] = (f"{IMAGE}\n" * len(pictures) + turns[0][0], turns[0][1])
    return Understanding(images=pictures, turns=turns, system=options.system)


def _turns(record: Record, draws: Draws) -> list[tuple[Any, Any]]:
    texts = record.get("texts", record.get("qa"))
    if isinstance(texts, Mapping):  # a list of dicts, as some readers give it
        texts = [dict(zip(texts, v, strict=True)) for v in zip(*texts.values(), strict=True)]
    if texts is not None:
        turns = [(_of(each, "user"), _of(each, "assistant")) for each in texts]
        if not turns:
            raise Unusable(reasons.EMPTY_TEXT, "no questions")
        return turns
    nested = record.get("question_answer")  # CLEVR of TFDS
    if isinstance(nested, Mapping):
        return list(zip(as_list(nested["question"]), as_list(nested["answer"]), strict=True))
    question = record.get("question", record.get("query"))
    answers = as_list(record.get("answer", record.get("answers", record.get("label"))))
    if question is None:
        raise Unusable(reasons.FORM, "neither texts nor a question")
    if not answers:
        raise Unusable(reasons.EMPTY_ANSWER)
    answer = draws.choice(answers)
    return [(question, answer.get("answer") if isinstance(answer, Mapping) else answer)]


def _of(turn: Any, who: str) -> Any:
    if not isinstance(turn, Mapping) or who not in turn:
        raise Unusable(reasons.FORM, f"a turn without {who!r}")
    return turn[who]


def _rated(
    turns: list[tuple[Any, Any]], record: Record, options: LayoutOptions
) -> list[tuple[Any, Any]]:
    """Turns all of whose ratings are at least `min_rating`; one without a rating is kept."""
    least = options.min_rating
    if least is None:
        return turns
    kept = list(turns)
    for name, values in record.items():
        kind = name.removesuffix(_RATINGS)
        limit = least.get(kind) if isinstance(least, Mapping) else least
        if kind == name or limit is None or not isinstance(values, list):
            continue
        low = [v is not None and v < limit for v in values[: len(turns)]]
        for at, is_low in enumerate(low):
            if is_low:
                kept[at] = None
    found = [turn for turn in kept if turn is not None]
    if not found:
        raise Unusable(reasons.LOW_RATING)
    return found
