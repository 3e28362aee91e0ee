"""Plain text files: a record is a file, a paragraph or a line."""

from __future__ import annotations

import os

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import PositionedFile, Record, check_file
from janus_jax.data.containers.index_cache import Index, cached_index
from janus_jax.data.containers.lines import line_offsets, paragraph_offsets
from janus_jax.data.containers.stores import size_of
from janus_jax.data.examples import Rejected
from janus_jax.errors import UserError

RECORDS = ("file", "paragraph", "line")


class TextFile:
    """The texts of a file: records {"text"}.

    Args:
      path: of the file, in UTF-8.
      record: "file"; "paragraph", what stands between blank lines; or "line".

    Raises:
      UserError: no such file, or no text in it.
    """

    def __init__(self, path: str | os.PathLike, record: str = "file"):
        check_file(path)
        self._file, self._kind = PositionedFile(path), record
        if record == "file":
            self._starts = np.array([0, size_of(path)], np.uint64)
        else:
            find = line_offsets if record == "line" else paragraph_offsets
            index = cached_index(f"text 1 {record}", path, lambda: Index({"starts": find(path)}))
            self._starts = index.arrays["starts"]
        if not len(self):
            raise UserError(f"{untrusted.printable(path, 200)} holds no text")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Record | Rejected:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        data = self._file.read_record(start, end - start)
        if isinstance(data, Rejected):
            return data
        try:
            return {"text": data.decode("utf-8-sig" if start == 0 else "utf-8")}
        except UnicodeDecodeError as error:
            return Rejected(reasons.NOT_UTF8, f"byte {error.start} of it")

    def describe(self, index: int) -> str:
        return self._file.path + ("" if self._kind == "file" else f", {self._kind} {index + 1}")

    def __reduce__(self):
        return TextFile, (self._file.path, self._kind)
