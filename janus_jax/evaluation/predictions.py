"""What a model answered, one line of JSON a question, in a file that survives a kill at any moment.

Lines are added and waited for until they are on disk. A last line that a kill cut short is taken away when the
file is opened again, so its question is asked again, and no other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.files import is_disk_full, read_json_lines

ANSWER, UNREADABLE, FAILED = ("answer", "unreadable", "failed")  # one of them is in each line
_KEY = ("protocol", "benchmark", "index")


class AppendedLines:
    """JSON lines that only grow. While it is open, no other process may add to the file.

    Args:
      path: of the file; made if need be.
      is_sound: whether a value is one of its lines; others are left out with a warning.

    Attributes:
      lines: of the file when it was opened.

    Raises:
      UserError: it cannot be read or written, or another process has it open.
    """

    def __init__(self, path: str | Path, is_sound: Callable[[Any], bool]):
        self._path = Path(path)
        untrusted.is_file(self._path)  # a named pipe would wait for ever
        self._file = open(self._path, "ab")  # noqa: SIM115
        try:
            self._lock()
            _cut_last_line(self._path)
            self.lines = read_json_lines(self._path, is_sound)
        except BaseException:
            self._file.close()
            raise

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines; they are on disk when this returns.

        Raises:
          UserError: the disk is full.
        """
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            if is_disk_full(error):
                raise UserError(
                    f"no space left on the disk while writing {untrusted.printable(self._path, 200)}: free "
                    "some and run the same command again"
                ) from error
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"another process is adding to {untrusted.printable(self._path, 200)}: wait for it, or "
                    "choose another directory"
                ) from error
            # Some file systems know no locks.


class Predictions(AppendedLines):
    """The answers of a run: of each question an answer, or why it was not asked or has none.

    A line: {"protocol", "benchmark", "index"} and one of "answer", "unreadable" (its pictures cannot be read) and
    "failed" (the model cannot be asked this, such as a question that is too long). Those that are unreadable are
    not written, and left out where an older file has them: the next run looks for their pictures again.
    """

    def __init__(self, path: str | Path):
        super().__init__(path, _is_sound)
        self._found: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
        for line in self.lines:
            if _kind(line) != UNREADABLE:
                self._keep(line)
        self.lines = []

    def done(self, protocol: str, benchmark: str) -> Mapping[str, tuple[str, str]]:
        """Index -> (which of the three, its text)."""
        return self._found.get((protocol, benchmark), {})

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        lines = list(lines)
        super().add(line for line in lines if _kind(line) != UNREADABLE)
        for line in lines:
            self._keep(line)

    def _keep(self, line: Mapping[str, Any]) -> None:
        kind = _kind(line)
        of = self._found.setdefault((line["protocol"], line["benchmark"]), {})
        of.setdefault(line["index"], (kind, line[kind]))


def _kind(line: Mapping[str, Any]) -> str:
    return next((kind for kind in (ANSWER, UNREADABLE, FAILED) if kind in line), "")


def _is_sound(line: Any) -> bool:
    if not isinstance(line, dict) or not (kind := _kind(line)):
        return False
    return all(isinstance(line.get(name), str) for name in (*_KEY, kind))


def _cut_last_line(path: Path) -> None:
    """Takes away what stands behind the last line end; reads no more than the last line."""
    with open(path, "r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - 65536, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
