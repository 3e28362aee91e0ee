"""What all containers share: the protocol, reading at an offset, and several files as one."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers import stores
from janus_jax.data.examples import Rejected
from janus_jax.errors import UserError
from janus_jax.gcs import is_gcs

Record = dict[str, Any]
RECORD_BYTES = 2**28  # of one record without its pictures: base64 in JSON has some 10 MB
MANY_OPEN = 200  # files: most processes may have 1024


class Container(Protocol):
    """Records at random: the fields of one are as the file has them, its pictures stay encoded.

    It can be pickled, and read by several threads. What is wrong with one record is `Rejected`; what is wrong
    with the whole file is a UserError when it is opened.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record | Rejected: ...

    def describe(self, index: int) -> str:
        """Where a record is, for people."""
        ...


def check_file(path: str | os.PathLike) -> None:
    """Raises UserError unless there is a regular file that is not empty."""
    shown = untrusted.printable(path, 200)
    if not is_gcs(path) and not untrusted.is_file(path):
        raise UserError(f"there is no file {shown}")
    try:
        if not stores.size_of(path):
            raise UserError(f"{shown} is empty")
        with stores.open_to_read(path) as file:
            start = file.read(6)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {shown}") from error
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror or error}") from error
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"(\xb5/\xfd", "zstd"), (b"\xfd7zXZ\0", "xz")):
        if start.startswith(magic):
            raise UserError(
                f"{shown} is compressed ({name}), so no record can be read without those before it: "
                "unpack it first"
            )


def missing_package(package: str, extra: str, what: str) -> UserError:
    return UserError(f'{what} needs {package}: pip install "janus-jax[{extra}]"')


class _Descriptor:
    """An open file that closes with the last reference, so that no thread reads one that was closed."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self, close=os.close):  # bound here: at the end of a program modules may be gone
        try:  # noqa: SIM105
            close(self.number)
        except (AttributeError, OSError):
            pass


class PositionedFile:
    """A file, or an object, that is read at offsets by any number of threads; it is opened at the first read.

    It pickles as its name, so every process opens its own.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._descriptor: _Descriptor | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Raises OSError where it cannot be read or is shorter than it was."""
        if is_gcs(self.path):
            return stores.read_range(self.path, offset, size)
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = _Descriptor(self.path)
        data = os.pread(descriptor.number, size, offset)
        while len(data) < size:  # a read gives 2 GB at most
            more = os.pread(descriptor.number, size - len(data), offset + len(data))
            if not more:
                raise OSError(None, "it is shorter than it was", self.path)
            data += more
        return data

    def read_record(self, offset: int, size: int) -> bytes | Rejected:
        if size > RECORD_BYTES:
            return Rejected(reasons.TOO_LARGE, f"{size >> 20} MiB, {RECORD_BYTES >> 20} at most")
        try:
            return self.read(offset, size)
        except OSError as error:
            return Rejected(reasons.CANNOT_READ, error.strerror or str(error))

    def __reduce__(self):
        return PositionedFile, (self.path,)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Bytes inside a file, such as a member of an archive, that are read when they are needed."""

    file: PositionedFile
    offset: int
    size: int

    def read(self) -> bytes:
        return self.file.read(self.offset, self.size)


class Joined:
    """Several files of one kind, one after the other, as one container.

    Files are opened when they are needed and closed when many are open; what was counted once must still
    be there when one is opened again.

    Args:
      paths: of the files.
      open_one: path -> container; a class with `OPEN`, how many may be open at a time, or without.
      open_at_most: how many.
    """

    def __init__(
        self,
        paths: Sequence[str],
        open_one: Callable[[str], Container],
        open_at_most: int = MANY_OPEN,
    ):
        self._paths, self._open_one, self._open_at_most = list(paths), open_one, open_at_most
        self._start()
        self._ends = np.cumsum([len(self._part(i)) for i in range(len(self._paths))])

    def _start(self) -> None:
        self._parts: collections.OrderedDict[int, Container] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_parts", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record | Rejected:
        part, within = self._find(index)
        return part[within]

    def describe(self, index: int) -> str:
        part, within = self._find(index)
        return part.describe(within)

    @property
    def blocks(self) -> np.ndarray | None:
        """First indices of what is read in one piece (row groups), ascending; None: records are read singly."""
        starts = [getattr(self._part(i), "blocks", None) for i in range(len(self._paths))]
        if any(block is None for block in starts):
            return None
        before = [0, *self._ends[:-1]]
        return np.concatenate([s + b for s, b in zip(starts, before, strict=True)])

    def _find(self, index: int) -> tuple[Container, int]:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._part(number), index - (int(self._ends[number - 1]) if number else 0)

    def _part(self, number: int) -> Container:
        with self._lock:
            part = self._parts.get(number)
            if part is None:
                part = self._parts[number] = self._open_one(self._paths[number])
                if hasattr(self, "_ends"):
                    self._check_length(number, len(part))
                while len(self._parts) > self._open_at_most:
                    self._parts.popitem(last=False)
            self._parts.move_to_end(number)
            return part

    def _check_length(self, number: int, length: int) -> None:
        before = self._ends[number] - (self._ends[number - 1] if number else 0)
        if length != before:
            path = untrusted.printable(self._paths[number], 200)
            raise UserError(
                f"{path} was changed while it was in use: it had {before} records and has {length} now; "
                "start again"
            )
