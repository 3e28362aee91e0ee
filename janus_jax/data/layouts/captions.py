"""Pictures with words that describe them: captions to learn, or prompts to draw by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example, Generation, Understanding
from janus_jax.data.layouts.base import (
    CAPTIONS,
    Draws,
    LayoutOptions,
    as_list,
    field,
    fields_of,
    filled,
    layout,
    one_picture,
    words,
)
from janus_jax.data.pictures import Unusable

# Janus-Pro report, stage 2: what is asked about a picture with a caption.
DESCRIBE = ("Describe the image in detail.",)
_SENTENCE = re.compile(r"[.!?][\"')\]]*(?=\s)|[\u3002\uff01\uff1f]")
_SHORT = re.compile(r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|St|Mt|vs|etc)|\b(?:e\.g|i\.e|a\.m|p\.m))\.$")


@layout
def captions(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """A picture and its caption, prompt or text; of several captions one is drawn."""
    caption = caption_of(record, options, draws)
    picture = one_picture(record, options)
    return described(record, picture, caption, options, draws, DESCRIBE)


def described(
    record: Record,
    picture: Any,
    text: str,
    options: LayoutOptions,
    draws: Draws,
    questions: tuple[str, ...],
) -> Example:
    """A picture to draw by a text, or a question about it that the text answers."""
    if options.draws_pictures:
        template = draws.choice(options.prompt) if options.prompt else "{caption}"
        prompt = filled(template, record, caption=text, **{"class": text})
        return Generation(prompt=prompt, picture=picture)
    if options.task == "text":
        raise Unusable(reasons.PICTURE_IN_TEXT)
    template = draws.choice(options.prompt or questions)
    question = filled(template, record, caption=text, **{"class": text})
    return Understanding(images=[picture], turns=[(question, text)])


def caption_of(record: Record, options: LayoutOptions, draws: Draws) -> str:
    """One caption of a record, whole or its first sentence; raises Unusable if it has none."""
    if options.caption_field:
        values = [v for name in options.caption_field for v in _texts(field(record, name))]
    else:
        found = [_texts(record[name]) for name in CAPTIONS if record.get(name) is not None]
        values = next((texts for texts in found if texts), found[0] if found else [])
        if not found:
            raise Unusable(reasons.NO_CAPTION, fields_of(record))
    usable = [value for value in values if not isinstance(value, str) or value.strip()]
    if not usable:
        raise Unusable(reasons.EMPTY_TEXT if values or record else reasons.NO_CAPTION)
    text = words(draws.choice(usable))
    if options.first_sentence and draws.random() < options.first_sentence:
        text = first_sentence(text)
    return text


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence; common abbreviations do not end one."""
    for found in _SENTENCE.finditer(text):
        if not _SHORT.search(text[: found.start() + 1]):
            return text[: found.end()]
    return text


def _texts(value: Any) -> list[Any]:
    """The texts of a field: one, a list, or what TFDS makes of a list of dicts, {"text": [...]}."""
    if isinstance(value, Mapping):
        value = next((value[n] for n in ("text", "caption", "raw") if n in value), None)
    found = [
        v.get("text", v.get("caption")) if isinstance(v, Mapping) else v for v in as_list(value)
    ]
    return [v for v in found if v is not None] or ([""] if value == "" else [])
