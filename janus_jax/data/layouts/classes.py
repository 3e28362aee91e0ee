"""Pictures of classes, such as ImageNet's: the name of the class is what is drawn or answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example
from janus_jax.data.layouts.base import (
    CLASSES,
    Draws,
    LayoutOptions,
    field,
    layout,
    one_picture,
    words,
)
from janus_jax.data.layouts.captions import described
from janus_jax.data.pictures import Unusable
from janus_jax.errors import UserError

QUESTIONS = ("What is in the picture?",)
_ID = re.compile(r"n\d{8}|\d+")  # WordNet's, as ImageNet's folders are named, and numbers
_LINE = re.compile(r"(n\d{8}|\d+)[\s:,]+(.+)")


@layout
def classes(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """A picture and its class: a name, or an id that `options.class_names` has a name for."""
    name = class_of(record, options)
    return described(record, one_picture(record, options), name, options, draws, QUESTIONS)


def class_of(record: Record, options: LayoutOptions) -> str:
    """The readable name of a record's class; raises Unusable if it has none."""
    value = class_value(record, options)
    if value is None or isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable(reasons.NO_CLASS)
    key = str(value)
    if options.class_names and key in options.class_names:
        return words(options.class_names[key], reasons.NO_CLASS)
    if is_id(key):
        hint = "it is not in class_names" if options.class_names else "give class_names"
        raise Unusable(reasons.NO_CLASS, f"{key} is an id: {hint}")
    return words(key.replace("_", " "), reasons.NO_CLASS)


def class_value(record: Record, options: LayoutOptions) -> Any:
    """What a record has as its class, a name or an id; None if it has none."""
    fields = options.caption_field or CLASSES
    return next((v for v in (field(record, n) for n in fields) if v is not None), None)


def is_id(name: object) -> bool:
    """Whether a class is an id that says nothing to a reader."""
    return isinstance(name, str | int) and bool(_ID.fullmatch(str(name)))


def read_class_names(value: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Id -> name.

    Args:
      value: a list of names, whose ids are 0, 1, ...; id -> name; or a file: JSON of either, or text with one
        name a line, or an id and a name as in ImageNet's `LOC_synset_mapping.txt`. Of several names with
        commas between them, as ImageNet has them, the first is taken.

    Raises:
      UserError: no such file, or no names in it.
    """
    where = "class_names"
    if isinstance(value, str):
        where = f"class_names {untrusted.printable(value, 200)}"
        is_json = value.endswith(".json")
        value = untrusted.read_json(value) if is_json else _lines(untrusted.read_text(value))
    if isinstance(value, Mapping):
        pairs: Any = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        pairs = enumerate(value)
    else:
        raise UserError(f"{where} must be a list of names, or a name for each id")
    names = {}
    for key, name in pairs:
        if (
            isinstance(name, list) and name
        ):  # {"0": ["n01440764", "tench"]}, as torchvision's index has it
            names[str(name[0])], name = _first(name[-1]), name[-1]
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: the name of class {key} must be a text, not {name!r}")
        names[str(key)] = _first(name)
    if not names:
        raise UserError(f"{where} holds no names")
    return names


def _lines(text: str) -> dict[str, str] | list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [_LINE.fullmatch(line) for line in lines]
    if lines and all(found):
        return {match[1]: match[2] for match in found if match}
    return lines


def _first(name: str) -> str:
    return name.split(",")[0].strip().replace("_", " ")
