"""Directories of prepared examples: ArrayRecord files, and `prepared.json`, which names them.

    {"version": 1, "task": "gen", "files": [{"name": "00000.array_record", "records": 1000}, ...]}

What is in a record is said in `data.layouts.prepared`. Other fields of the file are for people.
"""

from __future__ import annotations

import os
from pathlib import Path

from janus_jax import files, untrusted
from janus_jax.errors import UserError

INDEX = "prepared.json"
VERSION = 1


def prepared_files(directory: str, task: str) -> list[str]:
    """The files of a prepared directory, in the order of its records.

    Raises:
      UserError: it is none, is of another version or task, or a file is missing.
    """
    shown = untrusted.printable(directory, 200)
    place = os.path.join(directory, INDEX)
    if not untrusted.is_file(place):
        raise UserError(f"{shown} is no prepared directory: it has no {INDEX}")
    index = files.read_json(Path(place), dict, "prepare it again")
    with untrusted.understanding(place):
        if index["version"] != VERSION:
            raise UserError(
                f"{shown} was prepared in version {index['version']}, this program reads {VERSION}: prepare "
                "it again"
            )
        if index["task"] != task:
            raise UserError(f"{shown} was prepared for task {index['task']!r}, not {task!r}")
        names = [os.path.basename(str(each["name"])) for each in index["files"]]
    if not names:
        raise UserError(f"{shown} holds no record")
    return [os.path.join(directory, name) for name in names]


def tokenizer_of(file: str) -> str:
    """The mark of the image tokenizer whose codes are in a file of a prepared directory; "" without codes."""
    index = files.read_json(Path(file).parent / INDEX, dict, "prepare it again")
    settings = index.get("settings")
    codes = settings.get("codes") if isinstance(settings, dict) else None
    mark = codes.get("tokenizer") if isinstance(codes, dict) else ""
    return mark if isinstance(mark, str) else ""


def write_prepared_index(
    directory: str, task: str, records: dict[str, int], **about: object
) -> None:
    """Writes `prepared.json`: file name -> number of records, in their order; `about` is for people."""
    listed = [{"name": name, "records": count} for name, count in records.items()]
    value = {"version": VERSION, "task": task, "files": listed, **about}
    files.write_json(os.path.join(directory, INDEX), value)
