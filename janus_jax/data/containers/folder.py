"""Folders of pictures: a folder a class, a text file beside each picture, or a table of what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import Container, Record
from janus_jax.data.containers.index_cache import Index, cached_index
from janus_jax.data.containers.json_lines import JsonLines
from janus_jax.data.containers.parquet import Parquet
from janus_jax.data.containers.table import Table
from janus_jax.data.examples import Rejected
from janus_jax.data.pictures import SUFFIXES
from janus_jax.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SPLITS = {"train", "val", "valid", "validation", "test", "dev"}
_CAPTION_BYTES = 2**20


def open_folder(path: str) -> Container:
    """What is in a folder: `Metadata` where it has such a file, else `Pictures`."""
    if not os.path.isdir(path):
        raise UserError(f"{untrusted.printable(path, 200)} is no folder")
    found = [name for name in METADATA if os.path.isfile(os.path.join(path, name))]
    return Metadata(os.path.join(path, found[0])) if found else Pictures(path)


class Metadata:
    """Rows of a table that lies beside pictures, as Hugging Face's imagefolder has them.

    `file_name`, or `x_file_name`, is the name of a picture from the table's folder, `x_file_names` a list of
    them. A record has them as `image`, or `x`, with the folder in front, and all other columns.

    Raises:
      UserError: what the table's container raises, or no column names files.
    """

    def __init__(self, path: str):
        self._path, self._folder = path, os.path.dirname(os.path.abspath(path))
        opened = {".jsonl": JsonLines, ".csv": Table, ".parquet": Parquet}
        self._rows = opened[os.path.splitext(path)[1]](path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record | Rejected:
        row = self._rows[index]
        if isinstance(row, Rejected):
            return row
        record: Record = {}
        for name, value in row.items():
            if name in ("file_name", "file_names"):
                record["image" if name == "file_name" else "images"] = self._place(value)
            elif name.endswith(("_file_name", "_file_names")):
                record[name[: name.rindex("_file_name")]] = self._place(value)
            else:
                record.setdefault(name, value)
        return record

    def describe(self, index: int) -> str:
        return self._rows.describe(index)

    def _place(self, name: Any) -> Any:
        if isinstance(name, list):
            return [self._place(each) for each in name]
        return os.path.join(self._folder, name) if isinstance(name, str) and name else name


class Pictures:
    """All pictures in a folder and those below it, in the order of their names.

    A record has `image`, and where there are text files beside pictures, what is in its own (`a.jpg`,
    `a.txt`) as `text`; elsewhere the name of the topmost folder that it is in as `class_name`. Names that begin
    with a dot are left out; folders that are links are not entered, and count as a record that is rejected.

    Raises:
      UserError: no pictures, or splits where classes should be.
    """

    def __init__(self, path: str):
        self._path = os.path.abspath(path)
        index = cached_index(
            "folder 1", path, lambda: _index(self._path), lambda s: _is_current(self._path, s)
        )
        self._names, self._ends, self._has_texts = (
            index.arrays["names"],
            index.arrays["ends"],
            bool(index.meta),
        )
        shown = untrusted.printable(path, 200)
        if not len(self):
            raise UserError(f"{shown} holds no pictures")
        tops = {self._name(i).split(os.sep)[0] for i in (0, len(self) - 1)}
        if not self._has_texts and tops <= _SPLITS:
            raise UserError(
                f"{shown} holds splits, not classes: give the path of one of them, such as "
                f"{os.path.join(shown, max(tops))}"
            )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Record | Rejected:
        name = self._name(index)
        place = os.path.join(self._path, name)
        if not self._has_texts:
            top, separator, _ = name.partition(os.sep)
            return {"image": place, "class_name": top if separator else ""}
        stem, suffix = os.path.splitext(place)
        if suffix.lower() == ".txt":
            return Rejected(reasons.NO_PICTURE, "a text file without one")
        return _with_text(place, stem + ".txt", self._path)

    def describe(self, index: int) -> str:
        return os.path.join(self._path, self._name(index))

    def __reduce__(self):
        return Pictures, (self._path,)

    def _name(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._names[start : int(self._ends[index])].tobytes())


def _with_text(picture: str, path: str, root: str) -> Record | Rejected:
    try:
        if not os.path.realpath(path).startswith(os.path.realpath(root) + os.sep):
            return Rejected(reasons.PATH_ESCAPE, untrusted.shown(path))
        if not untrusted.is_file(path):
            return Rejected(reasons.NO_CAPTION, "no text file beside the picture")
        with open(path, "rb") as file:
            data = file.read(_CAPTION_BYTES + 1)
    except UserError as error:
        return Rejected(reasons.CANNOT_READ, str(error))
    except OSError as error:
        return Rejected(reasons.CANNOT_READ, error.strerror or str(error))
    if len(data) > _CAPTION_BYTES:
        return Rejected(reasons.TOO_LARGE, "a caption of more than 1 MiB")
    try:
        return {"image": picture, "text": data.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return Rejected(reasons.NOT_UTF8, f"byte {error.start} of the caption")


def _index(root: str) -> Index:
    """Names of pictures relative to the folder; the signature has every folder with its time of change."""
    folders: list[list[Any]] = []
    pictures: list[str] = []
    texts: dict[str, str] = {}  # without the suffix -> with it
    stems = set()
    for name, is_folder in _walk(root, "", folders):
        stem, suffix = os.path.splitext(name)
        suffix = suffix[1:].lower()
        if suffix in SUFFIXES or is_folder:
            pictures.append(name)
            stems.add(stem)
        elif suffix == "txt":
            texts[stem] = name
    has_texts = not stems.isdisjoint(texts)
    if has_texts:
        pictures += [name for stem, name in texts.items() if stem not in stems]
    encoded = [os.fsencode(name) for name in sorted(pictures)]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.uint64)
    names = np.frombuffer(b"".join(encoded), np.uint8)
    return Index({"names": names, "ends": ends}, has_texts, folders)


def _walk(root: str, below: str, folders: list[list[Any]]) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a linked folder) of what is in the folders; adds them to `folders`."""
    place = os.path.join(root, below)
    folders.append([below, os.stat(place).st_mtime_ns])
    inner = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = os.path.join(below, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    inner.append(name)
                else:
                    yield name, entry.is_symlink() and entry.is_dir()
    except OSError as error:
        raise UserError(
            f"cannot read {untrusted.printable(place, 200)}: {error.strerror or error}"
        ) from error
    for name in sorted(inner):
        yield from _walk(root, name, folders)


def _is_current(root: str, folders: list[list[Any]]) -> bool:
    return all(os.stat(os.path.join(root, name)).st_mtime_ns == time for name, time in folders)
