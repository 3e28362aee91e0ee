"""VLMEvalKit's tables: tab-separated, with the pictures of a row in base64 in its column `image`.

A file of several GB is read once; then where its rows begin and what is in their small columns is in the user's
cache. A picture is read from its row when it is called.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.benchmarks import BENCHMARK_FACTS, BenchmarkFacts
from janus_jax.evaluation.understanding.items import Picture, Progress, TableRow
from janus_jax.evaluation.understanding.literals import NOTHING, is_list, quoted_texts
from janus_jax.evaluation.understanding.picture_files import picture_file

INDEX_LETTERS = (
    64  # an `image` of so many at most is the index of another row, which has the picture
)
# Texts that pandas reads as "nothing" are that in all columns but these, where VLMEvalKit takes them as they are.
_AS_THEY_ARE = ("index", "question", "answer")
_CHUNK = 2**22


class TsvRows:
    """The rows of a table.

    Args:
      path: of the file.
      roots: directories of pictures, for a table that has their names in `image_path` instead of pictures.
      progress: wraps the positions of rows that are not in the cache.

    Raises:
      UserError: no such file, no such table, or a row that is cut off.
    """

    def __init__(self, path: str, roots: Sequence[str], progress: Progress | None = None):
        from janus_jax.data.containers.index_cache import cached_index
        from janus_jax.data.containers.table import Table

        self.path, self._roots = path, tuple(roots)
        self._table = Table(path, "\t")
        missing = [name for name in ("index", "question") if name not in self._table.columns]
        if missing:
            raise UserError(
                f"{untrusted.printable(path, 200)} is no table of VLMEvalKit: it has no column {missing[0]!r}, "
                f"only {untrusted.printable(', '.join(self._table.columns), 200)}"
            )
        index = cached_index(
            "benchmark table 1", path, lambda: _small_columns(self._table, progress)
        )
        self._text, self._ends = index.arrays["text"], index.arrays["ends"]
        self._with_picture: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def fields(self, position: int) -> dict[str, Any]:
        return TableRow(self._small(position)[0])

    def pictures(self, position: int) -> tuple[Picture, ...]:
        fields, count, other = self._small(position)
        where = self.describe(position)
        if count is None:  # names of files
            return tuple(
                picture_file(name, self._roots) for name in listed(fields.get("image_path"))
            )
        if other is not None:
            found = self._rows_with_pictures().get(other)
            if found is None:
                return (Picture(where, partial(_no_such_row, where, other)),)
            position, count = found, self._small(found)[1]
        return tuple(
            Picture(where, partial(self._decoded, position, nth)) for nth in range(count or 0)
        )

    def describe(self, position: int) -> str:
        return f"{untrusted.printable(self.path, 200)}, row {position + 1}"

    def _small(self, position: int) -> tuple[dict[str, Any], int | None, str | None]:
        start = int(self._ends[position - 1]) if position else 0
        fields, count, other = json.loads(bytes(self._text[start : int(self._ends[position])]))
        return fields, count, other

    def _rows_with_pictures(self) -> dict[str, int]:
        """Index -> position of the rows that have pictures of their own."""
        if self._with_picture is None:
            small = ((position, self._small(position)) for position in range(len(self)))
            self._with_picture = {
                str(fields.get("index")): position
                for position, (fields, count, _) in small
                if count
            }
        return self._with_picture

    def _decoded(self, position: int, nth: int) -> bytes:
        row, where = self._table[position], self.describe(position)
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {row}")
        texts = _pictures_of(row["image"])
        if nth >= len(texts):
            raise UserError(f"{where}: the file was changed while it was in use; start again")
        return decoded(texts[nth], where)


def decoded(text: str, where: str) -> bytes:
    """The bytes of a picture in base64; UserError where it is cut off or is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: the picture is no whole base64: {error}") from error


def listed(value: Any) -> list[str]:
    """A field that holds one text or a list of them, as text or as it is."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [str(v) for v in value]
    text = str(value)
    if is_list(text.strip()):
        found = quoted_texts(text.strip())
        if found is not None:
            return found
    return [text]


def _pictures_of(text: str) -> list[str]:
    return listed(text) if text.strip() else []


def _no_such_row(where: str, other: str) -> bytes:
    raise UserError(
        f"{where}: its picture should be in the row {untrusted.shown(other)}, but no row with a picture "
        "has that index"
    )


def _small_columns(table: Any, progress: Progress | None = None) -> Any:
    """Of each row: fields, number of pictures (None: `image_path` names them), index of the row that has them."""
    from janus_jax.data.containers.index_cache import Index

    pieces, ends, total = [], [], 0
    positions = range(len(table))
    for position in progress(positions) if progress else positions:
        row = table[position]
        if not isinstance(row, Mapping):
            raise UserError(f"{untrusted.printable(table.describe(position), 200)}: {row}")
        image = row.pop("image", None)
        fields = {
            name: None if name not in _AS_THEY_ARE and value in NOTHING else value
            for name, value in row.items()
        }
        count, other = None, None
        if image is not None:
            if image in NOTHING:
                count = 0
            elif len(image) <= INDEX_LETTERS and not is_list(image):
                count, other = 0, image
            else:
                count = len(_pictures_of(image))
        piece = json.dumps([fields, count, other], ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
        pieces.append(piece)
        total += len(piece)
        ends.append(total)
    text = np.frombuffer(b"".join(pieces), np.uint8)
    return Index({"text": text, "ends": np.array(ends, np.uint64)})


def md5_warning(path: str, facts: BenchmarkFacts) -> str:
    """What is to be said where a table is not the file that VLMEvalKit's numbers are of; "" where it is.

    Raises:
      UserError: it is the file of another benchmark.
    """
    from janus_jax.data.containers.index_cache import Index, cached_index

    found = cached_index("md5 1", path, lambda: Index({}, _md5(path))).meta
    if found == facts.md5:
        return ""
    other = next((known for known in BENCHMARK_FACTS.values() if known.md5 == found), None)
    if other:
        raise UserError(
            f"{untrusted.printable(path, 200)} is VLMEvalKit's {other.vlmevalkit}.tsv, not {facts.title}"
        )
    return (
        f"{untrusted.printable(os.path.basename(path))} is not the {facts.vlmevalkit}.tsv that VLMEvalKit uses "
        f"(MD5 {str(found)[:8]}..., expected {facts.md5[:8]}...): its numbers cannot be "
        "compared with those of others"
    )


def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
