"""From a row of any of the files to an `Item`: what each benchmark calls its columns, and how values are written.

A column may have several names: those of VLMEvalKit's tables, of the Hugging Face data sets, of official files.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.benchmarks import (
    COGNITION,
    MMMU_DISCIPLINE_OF,
    PERCEPTION,
    SEED_KINDS,
)
from janus_jax.evaluation.understanding.items import Item, Picture
from janus_jax.evaluation.understanding.literals import is_list, parse_list
from janus_jax.untrusted import printable, shown

Row = Mapping[str, Any]
Pictures = tuple[Picture, ...]
SUBSET = "pope_subset"  # what readers add where only the name of the file says it
_MMMU_ID = re.compile(r"([a-z]+)_(.+?)_\d+")


def text_of(value: Any) -> str:
    """A value of a row as text; "" for nothing. A whole number that became a float loses its ".0"."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _first(row: Row, *names: str) -> str:
    """The first of some columns that is there and not empty."""
    for name in names:
        if text := text_of(row.get(name)):
            return text
    return ""


def _required(row: Row, what: str, *names: str) -> str:
    if text := _first(row, *names):
        return text
    if not any(name in row for name in names):
        raise UserError(
            f"it has no {what} ({' or '.join(names)}), only {printable(', '.join(map(str, row)), 200)}"
        )
    raise UserError(f"its {what} is empty")


def _yes_or_no(row: Row, *names: str) -> str:
    answer = _required(row, "answer", *names)
    found = {"yes": "Yes", "no": "No"}.get(answer.strip().strip(".").lower())
    if found is None:
        raise UserError(f"its answer must be yes or no, not {shown(answer)}")
    return found


def _options(row: Row) -> dict[str, str]:
    """Columns that are called by one capital letter. The Hugging Face files have the text "nan" for none."""
    return {
        letter: text_of(row[letter])
        for letter in string.ascii_uppercase
        if row.get(letter) is not None and text_of(row[letter]) not in ("", "nan")
    }


def _pope(row: Row, pictures: Pictures) -> Item:
    subsets = _first(row, "category", SUBSET)
    index, number = _first(row, "index"), _first(row, "question_id", "id")
    groups = tuple(part.strip() for part in subsets.split(",") if part.strip())
    return Item(
        index=index or (f"{subsets}/{number}" if subsets and number else number),
        question=_required(row, "question", "question", "text"),
        answer=_yes_or_no(row, "answer", "label"),
        pictures=pictures,
        category=",".join(groups),
        groups=groups,
        fields=row,
    )


def _mme(row: Row, pictures: Pictures) -> Item:
    category = _required(row, "subtask", "category")
    answer = _yes_or_no(row, "answer")
    # The two questions about a picture have one id in the Hugging Face files: one is answered by yes, one by no.
    pair = _first(row, "image_path", "question_id", "same_picture")
    number = _first(row, "question_id")
    group = {**dict.fromkeys(PERCEPTION, "perception"), **dict.fromkeys(COGNITION, "cognition")}
    return Item(
        index=_first(row, "index") or (f"{number}#{answer}" if number else ""),
        question=_required(row, "question", "question"),
        answer=answer,
        pictures=pictures,
        category=category,
        groups=(group[category],) if category in group else (),
        picture_key=pair,
        fields=row,
    )


def _mmbench(row: Row, pictures: Pictures) -> Item:
    index = _required(row, "index", "index")
    if not re.fullmatch(r"[0-9]{1,12}", index):
        raise UserError(f"its index must be a number, not {shown(index)}")
    hint = _first(row, "hint")
    group = _first(row, "l2-category", "L2-category")
    return Item(
        index=index,
        question=_required(row, "question", "question"),
        answer=_letter(_first(row, "answer")),
        options=_options(row),
        hint="" if hint == "nan" else hint,
        pictures=pictures,
        category=_first(row, "category"),
        groups=(group,) if group else (),
        split=_first(row, "split"),
        fields=row,
    )


def _seed(row: Row, pictures: Pictures) -> Item:
    options = _options(row) or {
        letter: text_of(row.get(f"choice_{letter.lower()}"))
        for letter in "ABCD"
        if row.get(f"choice_{letter.lower()}") is not None
    }
    number = _first(row, "question_type_id")
    kind = _first(row, "category")
    if not kind and number.isdecimal() and 0 < int(number) <= len(SEED_KINDS):
        kind = SEED_KINDS[int(number) - 1]
    return Item(
        index=_first(row, "index", "question_id"),
        question=_required(row, "question", "question"),
        answer=_letter(_first(row, "answer")),
        options=options,
        pictures=pictures,
        category=kind,
        split=_first(row, "data_type") or "image",
        fields=row,
    )


def _gqa(row: Row, pictures: Pictures) -> Item:
    kinds = row.get("types")
    return Item(
        index=_first(row, "index", "id", "question_id"),
        question=_required(row, "question", "question"),
        answer=_first(row, "answer"),
        pictures=pictures,
        category=_first(row, "category") or text_of((kinds or {}).get("structural")),
        picture_key=_first(row, "imageId"),
        fields=row,
    )


def _mmmu(row: Row, pictures: Pictures) -> Item:
    found = _MMMU_ID.fullmatch(_first(row, "id"))
    subject = _first(row, "category") or (found[2] if found else "")
    subject = subject.replace(" ", "_")
    options = _options(row)
    listed = row.get("options")
    if not options and isinstance(listed, str) and listed.strip():
        listed = parse_list(listed)
    if not options and listed:
        if len(listed) > len(string.ascii_uppercase):
            raise UserError(f"it has {len(listed)} options, 26 at most")
        options = dict(zip(string.ascii_uppercase, map(text_of, listed), strict=False))
    answer = _first(row, "answer")
    several = not options and is_list(answer.strip())
    group = MMMU_DISCIPLINE_OF.get(subject) or _first(row, "l2-category").replace("&", "and")
    return Item(
        index=_first(row, "index", "id"),
        question=_required(row, "question", "question"),
        answer=answer,
        answers=tuple(parse_list(answer)) if several else (answer,) if answer else (),
        options=options,
        pictures=pictures,
        category=subject,
        groups=(group,) if group else (),
        split=_first(row, "split") or (found[1] if found else ""),
        fields=row,
    )


def _mmvet(row: Row, pictures: Pictures) -> Item:
    listed = row.get("capability")
    if isinstance(listed, list | tuple):
        listed = ",".join(map(text_of, listed))
    abilities = text_of(listed) or _first(row, "category")
    groups = tuple(part.strip() for part in abilities.split(",") if part.strip())
    return Item(
        index=_first(row, "index", "question_id"),
        question=_required(row, "question", "question"),
        answer=_first(row, "answer"),
        pictures=pictures,
        category=",".join(groups),
        groups=groups,
        fields=row,
    )


def _letter(answer: str) -> str:
    """The letter of an option; "" where the file keeps it secret."""
    answer = answer.strip()
    if answer == "nan":
        return ""
    if answer and not (len(answer) == 1 and answer in string.ascii_uppercase):
        raise UserError(f"its answer must be the letter of an option, not {shown(answer)}")
    return answer


def make_item(benchmark: str) -> Callable[[Row, Pictures], Item]:
    """What makes items of the rows of a benchmark; it raises UserError for a row that is no question."""
    return _MAKERS[benchmark]


_MAKERS = {
    "pope": _pope,
    "mme": _mme,
    "mmbench": _mmbench,
    "seed": _seed,
    "gqa": _gqa,
    "mmmu": _mmmu,
    "mmvet": _mmvet,
}
