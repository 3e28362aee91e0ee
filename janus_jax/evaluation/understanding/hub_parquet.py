"""The Parquet files of the Hugging Face data sets: small columns stay in memory, pictures in the file."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.items import Picture
from janus_jax.evaluation.understanding.picture_files import picture_file

_GROUPS = 2  # row groups whose pictures stay in memory: one has some 100 MB


class ParquetRows:
    """The rows of some files that belong together, in order.

    Args:
      paths: of the files; those of GQA are questions and pictures, which are joined by `imageId`.
      roots: directories of pictures, for rows that have the names of files alone.

    Raises:
      UserError: pyarrow is not installed; a file that is none, or is cut off; files with pictures alone.
    """

    def __init__(self, paths: Sequence[str], roots: Sequence[str]):
        self._roots = tuple(roots)
        self._groups: collections.OrderedDict[tuple[str, int], Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        files = [_File(path) for path in paths]
        self._of_pictures = [
            f for f in files if f.columns_of_pictures and "question" not in f.names
        ]
        self._files = [f for f in files if f not in self._of_pictures]
        if not self._files:
            raise UserError(
                f"{untrusted.printable(paths[0], 200)} has no column 'question', only "
                f"{untrusted.printable(', '.join(files[0].names), 200)}"
            )
        self._joined = self._find_joined() if self._of_pictures else {}
        self._ends = np.cumsum([len(f.table) for f in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fields(self, position: int) -> dict[str, Any]:
        file, at = self._place(position)
        row = file.row(at)
        for column in file.columns_of_pictures:
            row.pop(column, None)
        return row

    def pictures(self, position: int) -> tuple[Picture, ...]:
        file, at = self._place(position)
        row, where = file.row(at), self.describe(position)
        if self._of_pictures:
            key = str(row.get("imageId"))
            if key not in self._joined:
                return (Picture(where, partial(_not_there, where, key)),)
            file, at = self._joined[key]
            row = file.row(at)
        elif not file.columns_of_pictures and row.get("imageId") is not None:
            return (picture_file(str(row["imageId"]), self._roots),)
        return tuple(
            Picture(where, partial(self._fetch, file, at, column, nth, where))
            for column in file.columns_of_pictures
            for nth in range(_count(row.get(column, True)))
        )

    def describe(self, position: int) -> str:
        file, at = self._place(position)
        return f"{untrusted.printable(file.path, 200)}, row {at + 1}"

    def path_of(self, position: int) -> str:
        """The file that a row is in."""
        return self._place(position)[0].path

    def _place(self, position: int) -> tuple[_File, int]:
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self._files[number], position - (int(self._ends[number - 1]) if number else 0)

    def _find_joined(self) -> dict[str, tuple[_File, int]]:
        found = {}
        for file in self._of_pictures:
            if "id" not in file.names:
                raise UserError(
                    f"{untrusted.printable(file.path, 200)} has pictures without questions, so it needs a "
                    "column 'id' by which the questions of the other files name them"
                )
            for at, key in enumerate(file.table.column("id").to_pylist()):
                found[str(key)] = file, at
        return found

    def _fetch(self, file: _File, at: int, column: str, nth: int, where: str) -> bytes:
        group, within = file.group_of(at)
        try:
            with self._lock:
                key = file.path, group
                if key not in self._groups:
                    while len(self._groups) >= _GROUPS:
                        self._groups.popitem(last=False)
                    self._groups[key] = file.read_pictures(group)
                self._groups.move_to_end(key)
                value = self._groups[key].column(column).slice(within, 1).to_pylist()[0]
        except (OSError, ValueError) as error:  # pyarrow's errors are such
            raise UserError(f"{where}: {untrusted.printable(error)}") from error
        value = value[nth] if isinstance(value, list) else value
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value:
            return picture_file(value, self._roots).fetch()
        if not isinstance(value, bytes) or not value:
            raise UserError(f"{where}: there is no picture in the column {column!r}")
        return value


class _File:
    """One file: its small columns as a table of Arrow, and where its row groups begin."""

    def __init__(self, path: str):
        self.path = os.fspath(path)
        self._parquet = _pyarrow_parquet()
        from janus_jax.data.containers.base import check_file

        check_file(path)
        try:
            with self._parquet.ParquetFile(path) as file:
                leaves = [file.schema.column(i) for i in range(len(file.schema))]
                pictures = [leaf.path for leaf in leaves if _is_picture(leaf)]
                self.names = list(file.schema_arrow.names)
                small = [leaf.path for leaf in leaves if leaf.path not in pictures]
                self.table = file.read(columns=small, use_threads=False)
                counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except (OSError, ValueError) as error:  # pyarrow's errors are such
            raise UserError(
                f"{untrusted.printable(path, 200)} is not a whole Parquet file: {untrusted.printable(error)}"
            ) from error
        self.columns_of_pictures = list(dict.fromkeys(leaf.split(".")[0] for leaf in pictures))
        self._ends = np.cumsum(counts, dtype=np.int64)

    def row(self, at: int) -> dict[str, Any]:
        try:
            return self.table.slice(at, 1).to_pylist()[0]
        except (ValueError, OSError) as error:  # such as text that is not UTF-8
            raise UserError(
                f"{untrusted.printable(self.path, 200)}, row {at + 1}: {untrusted.printable(error)}"
            ) from error

    def group_of(self, at: int) -> tuple[int, int]:
        """(number of the row group, row in it)."""
        number = int(np.searchsorted(self._ends, at, side="right"))
        return number, at - (int(self._ends[number - 1]) if number else 0)

    def read_pictures(self, group: int) -> Any:
        with self._parquet.ParquetFile(self.path) as file:
            return file.read_row_group(group, columns=self.columns_of_pictures, use_threads=False)


def _is_picture(leaf: Any) -> bool:
    """Whether a column of Parquet holds encoded pictures: bytes that are not text."""
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"


def _count(value: Any) -> int:
    """How many pictures a column has in a row, of which all but the bytes were read; True: it has bytes alone."""
    if value is None:
        return 0
    return len(value) if isinstance(value, list) else 1


def _not_there(where: str, key: str) -> bytes:
    raise UserError(f"{where}: none of the files has the picture {untrusted.shown(key)}")


def _pyarrow_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        from janus_jax.data.containers.base import missing_package

        raise missing_package("pyarrow", "parquet", "reading Parquet files") from error
    return parquet
