"""Parquet files and Arrow files of Hugging Face's `datasets`, read with pyarrow."""

from __future__ import annotations

import collections
import json
import os
import threading
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import Record, check_file, missing_package
from janus_jax.data.containers.stores import open_to_read
from janus_jax.data.examples import Rejected
from janus_jax.data.order import MIXED_BLOCKS
from janus_jax.errors import UserError

# Row groups that stay in memory: those that are mixed, and as many of the next ones.
_GROUPS = 2 * MIXED_BLOCKS


class RowGroups:
    """The row groups that were read last, of any number of files. It pickles as an empty one."""

    def __init__(self) -> None:
        self._groups: collections.OrderedDict[tuple[str, int], Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, path: str, number: int) -> Any:
        """Raises OSError or ValueError where it cannot be read."""
        key = path, number
        with self._lock:
            if key not in self._groups:
                with open_to_read(path) as raw, _pyarrow("parquet").ParquetFile(raw) as file:
                    self._groups[key] = file.read_row_group(number, use_threads=False)
                while len(self._groups) > _GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]

    def __reduce__(self):
        return RowGroups, ()


class Parquet:
    """The rows of a Parquet file.

    A row is read with its whole row group, of which the last few stay in memory: `blocks` says where they
    begin, and an order that stays in one for a while reads much faster. Numbers of Hugging Face's `ClassLabel`
    become its names.

    Args:
      path: of the file.
      groups: what holds them, in common with other files.

    Attributes:
      blocks: int [G], the first row of each row group.

    Raises:
      UserError: pyarrow is not installed; no such file, no Parquet file, or no row.
    """

    shared = RowGroups
    OPEN = 200  # files at a time, of which only what is in them is known

    def __init__(self, path: str | os.PathLike, groups: RowGroups | None = None):
        parquet = _pyarrow("parquet")
        check_file(path)
        self._path = os.fspath(path)
        with (
            _understood(path, "Parquet"),
            open_to_read(path) as raw,
            parquet.ParquetFile(raw) as file,
        ):
            metadata = file.metadata
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._class_names = _class_names(file.schema_arrow.metadata)
        self._ends = np.cumsum(counts, dtype=np.int64)
        if not len(self):
            raise UserError(f"{untrusted.printable(path, 200)} holds no record")
        self.blocks = np.concatenate([[0], self._ends[:-1]])
        self._groups = groups or RowGroups()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record | Rejected:
        number = int(np.searchsorted(self._ends, index, side="right"))
        try:
            table = self._groups(self._path, number)
        except (OSError, ValueError) as error:  # pyarrow's errors are such
            return Rejected(reasons.CANNOT_READ, untrusted.printable(error))
        return _row(table, index - int(self.blocks[number]), self._class_names)

    def describe(self, index: int) -> str:
        return f"{self._path}, row {index + 1}"

    def __reduce__(self):
        return Parquet, (self._path, self._groups)


class Arrow:
    """The rows of an Arrow file, a stream as `save_to_disk` writes it or a file; it is mapped into memory.

    Raises:
      UserError: pyarrow is not installed; no such file, no Arrow file, or no row.
    """

    OPEN = 64

    def __init__(self, path: str | os.PathLike):
        pyarrow, ipc = _pyarrow(), _pyarrow("ipc")
        check_file(path)
        self._path = os.fspath(path)
        with _understood(path, "Arrow"):
            with open(path, "rb") as file:
                is_file = file.read(6) == b"ARROW1"
            source = pyarrow.memory_map(self._path)
            reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
            if is_file:
                self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            else:
                self._batches = list(reader)
            self._class_names = _class_names(reader.schema.metadata)
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)
        if not len(self):
            raise UserError(f"{untrusted.printable(path, 200)} holds no record")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record | Rejected:
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return _row(self._batches[number], index - before, self._class_names)

    def describe(self, index: int) -> str:
        return f"{self._path}, row {index + 1}"

    def __reduce__(self):
        return Arrow, (self._path,)


def dataset_files(path: str, split: str | None) -> list[str]:
    """The files of a Hugging Face dataset directory, in the order of its records.

    Args:
      path: what `save_to_disk` wrote, of a dataset or a dict of splits; or a directory of .parquet or .arrow
        files, at any depth.
      split: which; "train" where there are several and none is named.

    Raises:
      UserError: no such directory, split or files.
    """
    shown = untrusted.printable(path, 200)
    if not os.path.isdir(path):
        raise UserError(f"there is no directory {shown}")
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        splits = untrusted.read_json(os.path.join(path, "dataset_dict.json")).get("splits", [])
        chosen = split or ("train" if "train" in splits else splits[0] if splits else "train")
        if chosen not in splits:
            raise UserError(
                f"{shown} has no split {chosen!r}, it has {', '.join(map(str, splits))}"
            )
        path = os.path.join(path, chosen)
    state = os.path.join(path, "state.json")
    if os.path.isfile(state):
        listed = untrusted.read_json(state)
        if isinstance(listed, dict) and isinstance(listed.get("_data_files"), list):
            names = [each["filename"] for each in listed["_data_files"]]
            return [os.path.join(path, os.path.basename(name)) for name in names]
    found = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith((".parquet", ".arrow")) and not name.startswith((".", "cache-"))
    )
    chosen = _of_split(found, path, split or "train")
    if split and not chosen:
        raise UserError(f"{shown} has no files of a split {split!r}")
    found = chosen or found
    if not found:
        raise UserError(f"{shown} holds no .parquet or .arrow files")
    return found


def _of_split(files: list[str], root: str, split: str) -> list[str]:
    """Those named split-00000-of-00005.parquet, split.parquet, or in a folder of that name."""
    chosen = []
    for file in files:
        *folders, name = os.path.relpath(file, root).split(os.sep)
        stem = os.path.splitext(name)[0]
        if split in folders or stem == split or stem.startswith((f"{split}-", f"{split}_")):
            chosen.append(file)
    return chosen


def _pyarrow(module: str = "") -> Any:
    try:
        import importlib

        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError as error:
        raise missing_package("pyarrow", "parquet", "reading Parquet and Arrow files") from error


class _understood:
    """Turns pyarrow's errors, while a file is opened, into one line."""

    def __init__(self, path: str | os.PathLike, kind: str):
        self._path, self._kind = untrusted.printable(path, 200), kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | ValueError) and not isinstance(error, UserError):
            reason = untrusted.printable(error)
            raise UserError(f"{self._path} is not a whole {self._kind} file: {reason}") from error


def _row(table: Any, at: int, class_names: dict[str, list[str]]) -> Record | Rejected:
    try:
        record = table.slice(at, 1).to_pylist()[0]
    except (ValueError, OSError) as error:  # such as text that is not UTF-8
        is_text = isinstance(error, UnicodeDecodeError)
        reason = reasons.NOT_UTF8 if is_text else reasons.CANNOT_READ
        return Rejected(reason, untrusted.printable(error))
    for name, names in class_names.items():
        number = record.get(name)
        if isinstance(number, int):
            record[name] = names[number] if 0 <= number < len(names) else None
    return record


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Names of classes in the features that Hugging Face's `datasets` writes into a schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: list(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
