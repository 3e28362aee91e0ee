"""CSV and TSV files: the first row names the columns, the others are known by their offsets."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import PositionedFile, Record, check_file
from janus_jax.data.containers.index_cache import Index, cached_index
from janus_jax.data.containers.lines import content_start
from janus_jax.data.containers.stores import open_to_read
from janus_jax.data.examples import Rejected
from janus_jax.errors import UserError

_DELIMITERS = ";\t|,"  # that files have


class Table:
    """The rows of a CSV or TSV file.

    Args:
      path: of the file, in UTF-8.
      delimiter: one character; by default a tab in a file that ends in .tsv, else a comma. Fields with
        delimiters or line breaks in them are in double quotes, a quote in them is doubled.

    Raises:
      UserError: no such file; no row; no names of columns, or some that are alike; names that another delimiter
        separates; or a quote without its end.
    """

    def __init__(self, path: str | os.PathLike, delimiter: str | None = None):
        check_file(path)
        self._file, self._given = PositionedFile(path), delimiter
        suffix = os.path.splitext(self._file.path)[1].lower()
        self._delimiter = delimiter or ("\t" if suffix in (".tsv", ".tab") else ",")
        _allow_large_fields()
        kind = f"table 1 {self._delimiter!r}"
        index = cached_index(kind, path, lambda: _index(self._file.path, self._delimiter))
        self._starts, shown = index.arrays["starts"], untrusted.printable(path, 200)
        header = self._row(-1)
        if isinstance(header, Rejected):
            raise UserError(f"{shown}: the first row must name the columns ({header})")
        self.columns = [name.strip() for name in header]
        # A column without a name is what pandas and spreadsheets leave: numbers of rows, or nothing.
        named = [name for name in self.columns if name]
        if not named or len(set(named)) < len(named):
            raise UserError(
                f"{shown}: the first row must name the columns, each by another name, not "
                f"{untrusted.shown(self.columns, 120)}"
            )
        other = next(
            (c for c in _DELIMITERS if len(named) == 1 and c != self._delimiter and c in named[0]),
            None,
        )
        if other and not delimiter:
            raise UserError(
                f"{shown}: the first row names one column, {untrusted.shown(named[0], 120)}: if {other!r} is "
                f"between names, give delimiter: {json.dumps(other)}"
            )
        if not len(self):
            raise UserError(f"{shown} holds no record below its first row")

    def __len__(self) -> int:
        return len(self._starts) - 2

    def __getitem__(self, index: int) -> Record | Rejected:
        row = self._row(index)
        if isinstance(row, Rejected):
            return row
        if len(row) != len(self.columns):
            return Rejected(reasons.WRONG_TABLE, f"{len(row)} instead of {len(self.columns)}")
        return {name: value for name, value in zip(self.columns, row, strict=True) if name}

    def describe(self, index: int) -> str:
        return f"{self._file.path}, record {index + 1}"

    def __reduce__(self):
        return Table, (self._file.path, self._given)

    def _row(self, index: int) -> list[str] | Rejected:
        start, end = int(self._starts[index + 1]), int(self._starts[index + 2])
        data = self._file.read_record(start, end - start)
        if isinstance(data, Rejected):
            return data
        try:
            text = data.decode("utf-8")
            return next(
                csv.reader(_lines(text), delimiter=self._delimiter, strict=True), None
            ) or Rejected(reasons.WRONG_TABLE, "0")
        except UnicodeDecodeError as error:
            return Rejected(reasons.NOT_UTF8, f"byte {error.start} of it")
        except csv.Error as error:
            return Rejected(reasons.WRONG_TABLE, str(error))


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends; `str.splitlines` would also split at characters that are text here."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _index(path: str, delimiter: str) -> Index:
    """Offsets of the rows, the first one that of the names, then the end of the file."""
    starts, read, before = [], 0, 0

    def lines() -> Iterator[str]:
        nonlocal read
        for line in file:
            read += len(line)
            yield line.decode("latin-1")  # quotes and delimiters are the same bytes in UTF-8

    with open_to_read(path) as file:
        read = before = content_start(path)[0]
        file.seek(read)
        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise UserError(
                        f"{untrusted.printable(path, 200)}: a quote in record {len(starts)} has no end"
                    ) from error
                row = [str(error)]  # it is rejected when it is read
            if row:
                starts.append(before)
            before = read
    return Index({"starts": np.array([*starts, read], np.uint64)})


def _allow_large_fields() -> None:
    """The limit of `csv` on a field, for the process: base64 of a picture is longer than 131,072 letters."""
    if csv.field_size_limit() < sys.maxsize // 2:
        csv.field_size_limit(sys.maxsize // 2 if sys.maxsize < 2**32 else 2**31 - 1)
