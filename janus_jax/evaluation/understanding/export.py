"""Predictions in VLMEvalKit's files: its table without the pictures, with a column `prediction`.

With them its own scorer can be run (`--mode eval`): WORK_DIR/MODEL/EVAL_ID/MODEL_DATASET.tsv.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.benchmarks import benchmark_facts
from janus_jax.evaluation.understanding.items import Item, TableRow
from janus_jax.evaluation.understanding.layouts import text_of
from janus_jax.files import atomic_write
from janus_jax.untrusted import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CELL = 32767  # letters that a cell of Excel holds
# What Excel does not take in a text.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
SUFFIXES = ("tsv", "xlsx")


def write_predictions(
    directory: str | Path,
    model: str,
    benchmark: str,
    items: Iterable[Item],
    answers: Mapping[str, str | None],
    suffix: str = "tsv",
) -> Path:
    """Writes MODEL_DATASET.tsv or .xlsx, which replaces an older one whole.

    The columns are VLMEvalKit's whatever file the items came from, and what else a table of VLMEvalKit had. A
    missing answer is an empty one. Its scorer knows questions by the index of its own table.

    Args:
      directory: exists.
      model: in the name of the file: letters, digits, ".", "_" and "-".
      benchmark: whose items they are.
      items: all that should be in the file.
      answers: index -> answer.
      suffix: tsv, or xlsx, which needs openpyxl and cuts a text to 32,767 letters.

    Returns:
      The path of the file.

    Raises:
      UserError: another suffix; xlsx without openpyxl; a name that is none; an answer to another question.
    """
    if suffix not in SUFFIXES:
        raise UserError(f"predictions are written as {' or '.join(SUFFIXES)}, not {shown(suffix)}")
    if not _NAME.fullmatch(model):
        raise UserError(
            f'{shown(model)} is no name of a model for a file: use letters, digits, ".", "_" and "-"'
        )
    rows = [(item.index, _row(benchmark, item)) for item in items]
    known = {index for index, _ in rows}
    for index in answers:
        if index not in known:
            raise UserError(f"there is an answer to {shown(index)}, which is none of the questions")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    table = [[*columns, "prediction"]]
    for index, row in rows:
        table.append([row.get(name, "") for name in columns] + [answers.get(index) or ""])
    path = Path(directory) / f"{model}_{benchmark_facts(benchmark).vlmevalkit}.{suffix}"
    if suffix == "tsv":
        text = io.StringIO()
        csv.writer(text, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
            table
        )
        atomic_write(path, text.getvalue().encode("utf-8", "replace"))
    else:
        atomic_write(path, _xlsx(table))
    return path


def _row(benchmark: str, item: Item) -> dict[str, str]:
    """VLMEvalKit's columns of an item; a row of its own table stays as it is."""
    row = {"index": item.index, "question": item.question}
    if item.hint:
        row["hint"] = item.hint
    row |= item.options
    row["answer"] = item.answer
    if benchmark == "mme":
        row["image_path"] = item.picture_key
    if item.category:
        row["category"] = item.category
    if benchmark in ("mmbench", "mmmu"):
        row |= {"l2-category": item.groups[0]} if item.groups else {}
        row |= {"split": item.split} if item.split else {}
    if isinstance(item.fields, TableRow):
        row |= {name: text_of(value) for name, value in item.fields.items()}
    return row


def _xlsx(table: list[list[str]]) -> bytes:
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
    except ImportError as error:
        raise UserError(
            "writing .xlsx needs openpyxl: pip install openpyxl, or write .tsv (PRED_FORMAT=tsv for VLMEvalKit)"
        ) from error
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for number, values in enumerate(table):
        cells: list[Any] = []
        for name, value in zip(table[0], values, strict=True):
            is_number = number and name == "index" and value.isdecimal() and len(value) < 16
            cell = WriteOnlyCell(
                sheet, int(value) if is_number else _FORBIDDEN.sub("", value)[:_CELL]
            )
            if not is_number:
                cell.data_type = "s"  # an answer that begins with = is no formula
            cells.append(cell)
        sheet.append(cells)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()
