"""DPG-Bench's questions: of each prompt a graph, in which a question counts if those that it depends on do."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

from janus_jax import untrusted
from janus_jax.errors import UserError

L1_CATEGORIES = ("global", "entity", "attribute", "relation", "other")
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
_FIELD_LETTERS = (
    131_072  # the limit of the module csv, which other code in the process may have raised
)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a picture.

    Attributes:
      number: in its prompt, from 1 in the official file.
      text: to be answered by yes or no.
      parents: numbers of the questions that it depends on.
      category: such as "attribute - color".
    """

    number: int
    text: str
    parents: tuple[int, ...]
    category: str

    @property
    def l1(self) -> str:
        """The part of the category before the dash, such as "attribute"."""
        return self.category.split("-")[0].strip()


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of all prompts.

    Attributes:
      of: name of the prompt -> its questions, in the order of the file.
      compat: whether the file was read with the quirks of the official script.
      fingerprint: SHA-256 of all this.
    """

    of: Mapping[str, tuple[Question, ...]]
    compat: bool
    fingerprint: str


def read_questions(path: str | Path, compat: bool = False) -> Questions:
    """Reads `dpg_bench.csv`.

    With `compat`, as the official script does:
      skips_row_0: the first row of data is left out, though the header has been taken off already.
      replaces_split_items: where the rows of a prompt are in two places of the file, only the later ones count.

    Raises:
      UserError: unreadable, a column is missing, or a row makes no sense; the message names the line. Without
        `compat` also a question that is there twice, or depends on one that is not there.
    """
    path = Path(path)
    shown = untrusted.printable(path, 200)
    rows = csv.DictReader(io.StringIO(untrusted.read_text(path).removeprefix("\ufeff")))
    try:
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or [])]
        if missing:
            raise UserError(
                f"{shown} has no column {missing[0]}: it must be DPG-Bench's dpg_bench.csv, with "
                f"{', '.join(COLUMNS)}"
            )
        found = _grouped(rows, shown, compat)
    except csv.Error as error:
        raise UserError(f"{shown}, line {rows.line_num}: is no CSV: {error}") from error
    if not found:
        raise UserError(f"{shown} has no questions")
    if not compat:
        _check_graphs(found, shown)
    of = {item: tuple(questions.values()) for item, questions in found.items()}
    content = json.dumps([[k, [dataclasses.astuple(q) for q in v]] for k, v in of.items()])
    return Questions(of, compat, hashlib.sha256(content.encode()).hexdigest())


def _grouped(rows: csv.DictReader, shown: str, compat: bool) -> dict[str, dict[int, Question]]:
    """Prompt -> number -> question."""
    found: dict[str, dict[int, Question]] = {}
    previous = None
    for i, row in enumerate(rows):
        if compat and i == 0:
            continue
        where = f"{shown}, line {rows.line_num}"
        if any(isinstance(value, str) and len(value) > _FIELD_LETTERS for value in row.values()):
            raise UserError(f"{where}: is no CSV: a field has more than {_FIELD_LETTERS:,} letters")
        try:
            item, text = row["item_id"], row["question_natural_language"].strip()
            category = row["tuple"].split("(")[0].strip()
            parents = tuple(int(n) for n in row["dependency"].split(",") if int(n) != 0)
            question = Question(int(row["proposition_id"]), text, parents, category)
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{where}: proposition_id and dependency must be whole numbers, and no column may be missing "
                f"({untrusted.printable(error)})"
            ) from error
        if compat and item != previous:
            found[item] = {}
        questions = found.setdefault(item, {})
        if not compat and question.number in questions:
            raise UserError(
                f"{where}: {untrusted.shown(item)} has two questions with the number {question.number}"
            )
        questions[question.number] = question
        previous = item
    return found


def _check_graphs(found: Mapping[str, Mapping[int, Question]], shown: str) -> None:
    """Raises UserError for a question that depends on none that is there, or on itself."""
    for item, questions in found.items():
        for question in questions.values():
            for parent in question.parents:
                if parent not in questions:
                    raise UserError(
                        f"{shown}: question {question.number} of {untrusted.shown(item)} depends "
                        f"on {parent}, which "
                        "is not there"
                    )
        _check_circles(item, questions, shown)


def _check_circles(item: str, questions: Mapping[int, Question], shown: str) -> None:
    open_ones = {number: set(question.parents) for number, question in questions.items()}
    while open_ones:
        settled = [n for n, parents in open_ones.items() if not parents & open_ones.keys()]
        if not settled:
            numbers = ", ".join(map(str, sorted(open_ones)))
            raise UserError(
                f"{shown}: questions {numbers} of {untrusted.shown(item)} depend on each other in a circle"
            )
        for number in settled:
            del open_ones[number]
