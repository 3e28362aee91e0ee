"""Files and texts that someone else made: read within limits, shown without control characters.

A model directory comes from anywhere. Nothing in it may make a process wait (a named pipe), take all its
memory (a file of 64 GB), end in a traceback, or write to the terminal what it likes.
"""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax import console, gcs
from janus_jax.errors import UserError

# What code raises that meets values of a type or size it does not expect.
SENSELESS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
MESSAGE = 480  # letters of a whole message
# The largest real ones: tokenizer.json with some 35 MB, an index of shards with 1 MB.
TEXT_BYTES, JSON_BYTES = 2**27, 2**25
_DIGITS = 80  # of a number of 256 bits

# What stands where a file should, by its `stat.S_IFMT`.
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def printable(text: object, limit: int = 100) -> str:
    """`console.printable`, cut to `limit` letters: what is cut ends in the number of letters there were."""
    text = str(text)
    shown = console.printable(text[:limit])
    if len(text) <= limit and len(shown) <= limit:
        return shown
    note = f"... ({len(text)} letters)"
    return shown[: max(limit - len(note), 0)] + note


def shown(value: Any, limit: int = 60) -> str:
    """Like `repr`, but for values of any depth and size; see `printable`."""
    try:
        return printable(repr(value) if isinstance(value, str) else reprlib.repr(value), limit)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return f"a {type(value).__name__} that cannot be shown"


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file; links are followed.

    Raises:
      UserError: there is something else, which must not be opened.
    """
    if gcs.is_gcs(path):
        with gcs.asking(path):
            return gcs.absolute(path).is_file()
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        if os.path.islink(path):
            raise UserError(f"{_path(path)} is a link that leads to no file") from error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return False
        raise UserError(f"cannot read {_path(path)}: {error.strerror}") from error
    except ValueError:  # a zero byte in the name
        return False
    if kind != stat.S_IFREG:
        raise UserError(f"{_path(path)} must be a file, but it is {KINDS.get(kind, 'none')}")
    return True


def check_tree(directory: str | Path) -> None:
    """Raises a UserError if anything below a directory is neither a file nor a directory."""
    for parent, _, files in os.walk(directory):
        for name in files:
            is_file(os.path.join(parent, name))


def read_text(path: str | Path, limit: int = TEXT_BYTES) -> str:
    """The text of a file of at most `limit` bytes.

    Raises:
      UserError: it is missing, unreadable, too large, not UTF-8, or no regular file.
    """
    if not is_file(path):
        raise UserError(f"cannot read {_path(path)}: there is no such file")
    try:
        if gcs.is_gcs(path):
            with gcs.asking(path):
                return gcs.absolute(path).read_bytes().decode("utf-8")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise UserError(f"cannot read {_path(path)}: it has more than {limit >> 20} MiB")
            return file.read().decode("utf-8")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None  # the path is named once
        raise UserError(f"cannot read {_path(path)}: {reason or printable(error, 200)}") from error


def read_json(path: str | Path, limit: int = JSON_BYTES) -> Any:
    """The value in a JSON file of at most `limit` bytes; its integers have at most 80 digits.

    Raises:
      UserError: it cannot be read or parsed.
    """
    text = read_text(path, limit)
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise UserError(f"{_path(path)} is damaged: its values are nested too deeply") from error
    except ValueError as error:
        raise UserError(
            f"{_path(path)} is not valid JSON, it may be damaged: {printable(error, 200)}"
        ) from error


@contextlib.contextmanager
def understanding(what: str | Path, limit: int = MESSAGE) -> Iterator[None]:
    """What goes wrong inside, while values of the file `what` are used, becomes one line of `limit` letters.

    Raises:
      UserError: values are of a type or size that the code inside did not expect.
    """
    try:
        yield
    except UserError as error:
        message = printable(error, limit)
        if message == str(error):
            raise
        raise type(error)(message) from error
    except SENSELESS as error:
        reason = f"{type(error).__name__}: {printable(error, 150)}"
        raise UserError(f"{_path(what)} holds values that make no sense: {reason}") from error


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _path(path: object) -> str:
    return printable(path, 200)
