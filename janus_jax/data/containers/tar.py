"""WebDataset archives: members of one key are one record; nothing is unpacked, members are read in place.

Rules of keys: https://github.com/webdataset/webdataset, `tariterators.base_plus_ext` and `group_by_keys`: the
key is the directory and the name up to its first dot, the rest in lower case says what the member is, members
of a key follow each other, `__name__` is skipped.
"""

from __future__ import annotations

import os
import re
import tarfile

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import PositionedFile, Record, Stored, check_file
from janus_jax.data.containers.index_cache import Index, cached_index
from janus_jax.data.containers.json_lines import parse_object
from janus_jax.data.containers.stores import open_to_read
from janus_jax.data.examples import Rejected
from janus_jax.data.pictures import SUFFIXES
from janus_jax.errors import UserError

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_SKIPPED = re.compile(r"__[^/]*__($|/)")
_LINK, _OUTSIDE, _ODD = -1, -2, -3  # instead of the size of a member
_TEXTS = ("txt", "text", "caption", "transcript", "cls", "cls2")


class Tar:
    """The samples of an archive.

    A record has `__key__`; `image`, or `images` if there are several, in the order of the members; the fields
    of a member `json`; other members by their suffix: text where it is a text, a number for `cls`, else
    `Stored`. `txt` is the `caption` as well.

    Raises:
      UserError: no such file; no tar, compressed or cut off; or no sample in it.
    """

    def __init__(self, path: str | os.PathLike):
        check_file(path)
        self._file = PositionedFile(path)
        index = cached_index("tar 1", path, lambda: _index(path))
        self._arrays, self._suffixes = index.arrays, index.meta
        if not len(self):
            raise UserError(
                f"{untrusted.printable(path, 200)} holds no sample: members must be named like key.jpg, "
                "key.txt"
            )

    def __len__(self) -> int:
        return len(self._arrays["first"]) - 1

    def __getitem__(self, index: int) -> Record | Rejected:
        first, last = (int(self._arrays["first"][index + i]) for i in (0, 1))
        members: dict[str, Stored] = {}
        for at in range(first, last):
            suffix = self._suffixes[self._arrays["suffix"][at]]
            size = int(self._arrays["size"][at])
            if size < 0:
                return _special(suffix, size)
            if suffix in members:
                return Rejected(reasons.TWO_MEMBERS, f"two .{untrusted.printable(suffix)}")
            members[suffix] = Stored(self._file, int(self._arrays["offset"][at]), size)
        return self._record(self._key(index), members)

    def describe(self, index: int) -> str:
        return f"{self._file.path}, sample {self._key(index)}"

    def __reduce__(self):
        return Tar, (self._file.path,)

    def _key(self, index: int) -> str:
        end = int(self._arrays["key_end"][index])
        start = int(self._arrays["key_end"][index - 1]) if index else 0
        return self._arrays["keys"][start:end].tobytes().decode("utf-8", "backslashreplace")

    def _record(self, key: str, members: dict[str, Stored]) -> Record | Rejected:
        record: Record = {"__key__": key}
        pictures = []
        for suffix, member in members.items():
            kind = suffix.rpartition(".")[2]
            if kind in SUFFIXES:
                pictures.append(member)
                continue
            if suffix != "json" and kind not in _TEXTS:
                record[suffix] = member
                continue
            data = self._file.read_record(member.offset, member.size)
            value = data if isinstance(data, Rejected) else _parse(suffix, kind, data)
            if isinstance(value, Rejected):
                return value
            if suffix == "json":
                record = {**value, **record}  # members come before what is said of them
            else:
                record[suffix] = value
                if suffix == "txt":
                    record["caption"] = value
        if pictures:  # and before names of pictures
            record = {k: v for k, v in record.items() if k not in ("image", "images")}
            record |= {"image": pictures[0]} if len(pictures) == 1 else {"images": pictures}
        return record


def _parse(suffix: str, kind: str, data: bytes) -> Record | str | int | Rejected:
    if suffix == "json":
        return parse_object(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejected(reasons.NOT_UTF8, f"byte {error.start} of .{untrusted.printable(suffix)}")
    if kind.startswith("cls"):
        return int(text) if text.strip().isdecimal() else text.strip()
    return text


def _special(suffix: str, size: int) -> Rejected:
    shown = untrusted.printable(suffix)
    if size == _ODD:
        return Rejected(reasons.CANNOT_READ, f".{shown} is no plain file")
    what = "is a link" if size == _LINK else "has a name that leads outside"
    return Rejected(reasons.ARCHIVE_ESCAPE, f".{shown} {what}")


def _index(path: str | os.PathLike) -> Index:
    first, offsets, sizes, suffix_ids, keys, key_ends = [0], [], [], [], [], []
    suffixes: dict[str, int] = {}
    previous, length = None, 0
    for member in _members(path):
        found = _KEY.fullmatch(member.name)
        if member.isdir() or not found or _SKIPPED.match(member.name):
            continue
        key, suffix = found[1], found[2].lower()
        if key != previous:
            if offsets:
                first.append(len(offsets))
            previous = key
            encoded = key.encode("utf-8", "surrogateescape")
            length += len(encoded)
            keys.append(encoded)
            key_ends.append(length)
        offsets.append(member.offset_data)
        sizes.append(_size(member))
        suffix_ids.append(suffixes.setdefault(suffix, len(suffixes)))
    if offsets:
        first.append(len(offsets))
    arrays = {
        "first": np.array(first, np.uint32),
        "offset": np.array(offsets, np.uint64),
        "size": np.array(sizes, np.int64),
        "suffix": np.array(suffix_ids, np.uint32),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_end": np.array(key_ends, np.uint64),
    }
    return Index(arrays, list(suffixes))


def _size(member: tarfile.TarInfo) -> int:
    if member.issym() or member.islnk():
        return _LINK
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return _OUTSIDE
    return member.size if member.isreg() and not member.issparse() else _ODD


def _members(path: str | os.PathLike):
    """All members; raises UserError where the archive is damaged, which `tarfile` takes for its end."""
    shown = untrusted.printable(path, 200)
    try:
        with open_to_read(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while member := archive.next():
                yield member
                archive.members = []  # it would keep all
            end = archive.offset
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{shown} is not a whole tar archive: {untrusted.printable(error)}"
        ) from error
    with open_to_read(path) as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise UserError(f"{shown} is damaged at byte {end}: copy it again")
