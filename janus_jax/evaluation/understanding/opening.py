"""Opening a benchmark: which of the formats files have is seen from the files themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError, nearest
from janus_jax.evaluation.understanding.benchmarks import (
    CATEGORIES,
    BenchmarkFacts,
    benchmark_facts,
)
from janus_jax.evaluation.understanding.items import Items, Picture, Progress, Rows
from janus_jax.evaluation.understanding.layouts import SUBSET, make_item

FORMATS = ("tsv", "parquet", "json")
ANOTHER_FILE = "another file"  # in the names of numbers


def open_benchmark(
    name: str,
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    image_root: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    split: str | None = None,
    file_format: str | None = None,
    progress: Progress | None = None,
) -> Items:
    """The questions of a benchmark, from the files as they are distributed.

    Args:
      name: pope, mme, mmbench, seed, gqa, mmmu or mmvet.
      paths: one file; several that belong together (POPE's three JSON files, Parquet shards, GQA's questions and
        pictures); or a directory of Parquet files. The formats: VLMEvalKit's tables (tsv), the Parquet files of
        the Hugging Face data sets (parquet), the official JSON files (json).
      image_root: where the pictures are that the files name; by default beside the files.
      split: only its questions, such as MMMU's "validation"; None: all.
      file_format: one of `FORMATS`, where it should not be seen from the files.
      progress: wraps the positions of rows that are read the first time a table is opened, such as tqdm: one of
        several GB takes half a minute or more.

    Raises:
      UserError: an unknown benchmark or format; files that are missing, damaged, of another format or benchmark;
        an index that is missing or that two rows have; a split that the files do not have.
    """
    facts = benchmark_facts(name)
    if file_format is not None and file_format not in FORMATS:
        raise UserError(
            f"unknown format {untrusted.shown(file_format)}, expected one of {', '.join(FORMATS)}."
            + nearest(str(file_format)[:100], FORMATS)
        )
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = _files([os.fspath(path) for path in given])
    roots = _roots(image_root, found)
    kinds = [file_format or recognised(path) for path in found]
    if len(set(kinds)) > 1:
        raise UserError(
            f"{name}: {untrusted.printable(found[0], 200)} is {kinds[0]} and "
            f"{untrusted.printable(found[kinds.index(_other(kinds))], 200)} is {_other(kinds)}: give files "
            "of one format"
        )
    rows, warnings = _rows(facts, kinds[0], found, roots, progress)
    items = Items(
        name, rows, make_item(name), split, warnings, other=ANOTHER_FILE if warnings else ""
    )
    _check_categories(items, found[0])
    return items


def _check_categories(items: Items, path: str) -> None:
    """Raises UserError where most categories are unknown: the files are of another benchmark."""
    known = CATEGORIES.get(items.benchmark)
    given = {part for category in items.categories for part in category.split(",") if part}
    if known and given and 2 * len(given & known) <= len(given):
        raise UserError(
            f"{untrusted.printable(path, 200)} is no {items.benchmark}: its categories "
            f"({untrusted.printable(', '.join(sorted(given - known)), 80)}) are not those of that "
            f"benchmark, such as {sorted(known)[0]}"
        )


def recognised(path: str) -> str:
    """The format of a file, by how it begins: tsv, parquet or json.

    Raises:
      UserError: it is missing, empty, or none of them.
    """
    from janus_jax.data.containers.base import check_file

    check_file(path)
    with open(path, "rb") as file:
        start = file.read(65536)
    if start[:4] == b"PAR1":
        return "parquet"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        return "json"
    header = text.split(b"\n", 1)[0].replace(b'"', b"").strip().split(b"\t")
    if b"index" in header and b"question" in header:
        return "tsv"
    raise UserError(
        f"{untrusted.printable(path, 200)} is neither a table of VLMEvalKit (its first row names the columns, "
        f"index and question among them), nor Parquet, nor JSON: it begins with {untrusted.shown(start[:40])}"
    )


def _rows(
    facts: BenchmarkFacts, kind: str, paths: list[str], roots: list[str], progress: Progress | None
) -> tuple[Rows, list[str]]:
    """(the rows, why they are not those of the known file)."""
    if kind == "tsv":
        from janus_jax.evaluation.understanding.vlmevalkit_tsv import TsvRows, md5_warning

        if len(paths) > 1:
            raise UserError(
                f"{facts.name} is one table: {untrusted.printable(paths[0], 200)} and "
                f"{untrusted.printable(paths[1], 200)} are two"
            )
        warning = md5_warning(paths[0], facts)
        return TsvRows(paths[0], roots, progress), [warning] if warning else []
    if kind == "parquet":
        from janus_jax.evaluation.understanding.hub_parquet import ParquetRows

        rows = ParquetRows(paths, roots)
        return (_WithSubset(rows), []) if facts.name == "pope" else (rows, [])
    from janus_jax.evaluation.understanding.official_json import JsonRows

    return JsonRows(facts.name, paths, roots), []


class _WithSubset:
    """Rows of POPE's config "Full", whose subset only the name of the file says."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def fields(self, position: int) -> dict[str, Any]:
        from janus_jax.evaluation.understanding.official_json import pope_subset

        fields = self._rows.fields(position)
        if not fields.get("category"):
            fields[SUBSET] = pope_subset(self._rows.path_of(position))
        return fields

    def pictures(self, position: int) -> tuple[Picture, ...]:
        return self._rows.pictures(position)

    def describe(self, position: int) -> str:
        return self._rows.describe(position)


def _other(kinds: list[str]) -> str:
    return next(kind for kind in kinds if kind != kinds[0])


def _files(paths: list[str]) -> list[str]:
    """The files of some paths; of a directory those in it, at any depth, by name."""
    found: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        inside = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.endswith(".parquet") and not name.startswith(".")
        )
        if not inside:
            raise UserError(
                f"{untrusted.printable(path, 200)} is a directory without Parquet files: name the file of the "
                "benchmark"
            )
        found += inside
    if not found:
        raise UserError("a benchmark needs the path of its file")
    return list(dict.fromkeys(found))


def _roots(image_root: Any, paths: list[str]) -> list[str]:
    if image_root is None:
        near = [os.path.dirname(path) or "." for path in paths]
        return list(dict.fromkeys(os.path.realpath(place) for place in near))
    roots = [image_root] if isinstance(image_root, str | os.PathLike) else list(image_root)
    for root in roots:
        if not os.path.isdir(root):
            raise UserError(f"image_root {untrusted.printable(root, 200)} is no directory")
    return [os.path.realpath(root) for root in roots]
