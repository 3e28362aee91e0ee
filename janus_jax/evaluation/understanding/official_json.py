"""The benchmarks' own JSON files, whose pictures lie in a folder.

POPE has three files with an object a line; MM-Vet and GQA one object of id -> question; SEED-Bench one with a list
of questions and the names of their kinds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.benchmarks import POPE_SUBSETS
from janus_jax.evaluation.understanding.items import Picture
from janus_jax.evaluation.understanding.layouts import SUBSET
from janus_jax.evaluation.understanding.picture_files import picture_file

_BYTES = 2**28  # GQA's testdev_balanced_questions.json has some 15 MB
# The column that names the picture, by benchmark; None: these files do not exist.
_NAMED_BY = {
    "pope": "image",
    "mmvet": "imagename",
    "gqa": "imageId",
    "seed": "data_id",
}


def pope_subset(path: str) -> str:
    """The subset that the name of a file, or of its folder, says; "" if none."""
    place = os.path.join(*os.path.abspath(path).split(os.sep)[-2:]).lower()
    found = [subset for subset in POPE_SUBSETS if subset in os.path.basename(place)]
    found = found or [subset for subset in POPE_SUBSETS if subset in place]
    return found[0] if len(found) == 1 else ""


class JsonRows:
    """The questions of some files, in order.

    Args:
      benchmark: whose files they are.
      paths: of the files.
      roots: directories of pictures.

    Raises:
      UserError: no such file; no JSON of this form; or a benchmark without such files.
    """

    def __init__(self, benchmark: str, paths: Sequence[str], roots: Sequence[str]):
        if benchmark not in _NAMED_BY:
            raise UserError(
                f"{benchmark} has no official JSON files with questions ({', '.join(_NAMED_BY)} have): give a "
                "table of VLMEvalKit or Parquet files"
            )
        self._named_by, self._roots = _NAMED_BY[benchmark], tuple(roots)
        self._rows = [
            (path, number, row)
            for path in paths
            for number, row in enumerate(_questions(benchmark, path), 1)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def fields(self, position: int) -> dict[str, Any]:
        return dict(self._rows[position][2])

    def pictures(self, position: int) -> tuple[Picture, ...]:
        value = self._rows[position][2].get(self._named_by)
        names = value if isinstance(value, list) else [value]
        return tuple(picture_file(str(name), self._roots) for name in names if name is not None)

    def describe(self, position: int) -> str:
        path, number, _ = self._rows[position]
        return f"{untrusted.printable(path, 200)}, question {number}"


def _questions(benchmark: str, path: str) -> Iterator[Mapping[str, Any]]:
    if benchmark == "pope":
        yield from _pope(path)
        return
    value = untrusted.read_json(path, _BYTES)
    shown = untrusted.printable(path, 200)
    if not isinstance(value, dict) or not value:
        raise UserError(f"{shown} must hold one JSON object with questions")
    if benchmark == "seed":
        yield from _seed(value, shown)
        return
    for index, question in value.items():
        if not isinstance(question, dict):
            raise UserError(
                f"{shown}: {untrusted.shown(index)} must be an object with a question, not "
                f"{untrusted.shown(question)}"
            )
        yield {**question, "question_id": index}


def _pope(path: str) -> Iterator[Mapping[str, Any]]:
    from janus_jax.data.containers.json_lines import JsonLines

    rows, subset = JsonLines(path), pope_subset(path)
    for position in range(len(rows)):
        row = rows[position]
        if not isinstance(row, Mapping):
            raise UserError(f"{untrusted.printable(rows.describe(position), 200)}: {row}")
        yield {**row, SUBSET: subset} if subset else row


def _seed(value: Mapping[str, Any], shown: str) -> Iterator[Mapping[str, Any]]:
    questions, kinds = value.get("questions"), value.get("question_type")
    if not isinstance(questions, list) or not all(isinstance(q, dict) for q in questions):
        raise UserError(f"{shown} must hold a list 'questions' of objects")
    names = {}
    if isinstance(kinds, dict):
        names = {number: name for name, number in kinds.items() if isinstance(number, int)}
    for question in questions:
        kind = names.get(question.get("question_type_id"))
        yield {**question, "category": kind} if kind else question
