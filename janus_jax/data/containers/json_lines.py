"""JSON objects, one a line or the elements of one array: known by their offsets, parsed when they are read."""

from __future__ import annotations

import json
import os

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import PositionedFile, Record, check_file
from janus_jax.data.containers.index_cache import Index, cached_index
from janus_jax.data.containers.lines import array_offsets, content_start, line_offsets
from janus_jax.data.examples import Rejected
from janus_jax.errors import UserError

_TRIED = 20  # lines of a file of which one at least must be an object


class JsonLines:
    """The objects of a JSONL file, or of a file that holds one JSON array.

    Raises:
      UserError: no such file; no record in it; an array that is cut off; or none of the first lines is JSON.
    """

    def __init__(self, path: str | os.PathLike):
        check_file(path)
        self._file = PositionedFile(path)
        index = cached_index("json 1", path, lambda: _index(path))
        self._starts, self._is_array = index.arrays["starts"], bool(index.meta)
        if not len(self):
            raise UserError(f"{untrusted.printable(path, 200)} holds no record")
        found = [self[i] for i in range(min(len(self), _TRIED))]
        if all(isinstance(r, Rejected) and r.reason == reasons.WRONG_JSON for r in found):
            raise UserError(
                f"{untrusted.printable(path, 200)} holds neither one JSON object a line nor an array of them "
                f"({found[0].detail})"
            )

    def __len__(self) -> int:
        return max(len(self._starts) - 1, 0)

    def __getitem__(self, index: int) -> Record | Rejected:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        data = self._file.read_record(start, end - start - self._is_array)
        return data if isinstance(data, Rejected) else parse_object(data)

    def describe(self, index: int) -> str:
        return f"{self._file.path}, record {index + 1}"

    def __reduce__(self):
        return JsonLines, (self._file.path,)


def parse_object(data: bytes) -> Record | Rejected:
    """A JSON object in UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejected(reasons.NOT_UTF8, f"byte {error.start} of it")
    try:
        value = json.loads(text)
    except RecursionError:
        return Rejected(reasons.WRONG_JSON, "nested too deeply")
    except ValueError as error:
        return Rejected(reasons.WRONG_JSON, untrusted.printable(error))
    if not isinstance(value, dict):
        return Rejected(reasons.WRONG_JSON, f"{type(value).__name__} instead of an object")
    return value


def _index(path: str | os.PathLike) -> Index:
    start, first = content_start(path)
    is_array = first == b"["
    starts = array_offsets(path, start) if is_array else line_offsets(path)
    return Index({"starts": np.asarray(starts, np.uint64)}, is_array)
