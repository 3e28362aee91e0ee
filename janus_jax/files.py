"""Small files: written whole or not at all, read with an error that says what is wrong with them.

`atomic_write` is the only way in which this package writes a file that somebody may read; directories of
models appear whole in the same manner (`interop.conversion.output_dir`, `checkpoints.model_dir`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax import gcs, untrusted
from janus_jax.errors import UserError

# The process may not or cannot read at the moment; what is in the file may be whole.
ACCESS_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
    *(errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ENOTCONN),
    *(errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
_ADVICE = {
    errno.EACCES: "see to it that you may read it (chmod, chown), and run the same command again",
    errno.EMFILE: "allow the process more open files (ulimit -n), and run the same command again",
}
_ADVICE[errno.EPERM] = _ADVICE[errno.EACCES]


class DamagedError(UserError):
    """What is on disk is not what was written there, or not all of it."""


def atomic_write(path: str | Path, content: bytes | str | Callable[[Path], None]) -> None:
    """Writes a file that has its old content or its new one at every moment.

    It is written under a temporary name in the same directory and renamed once it is on disk: without
    that, a machine that stops right after the renaming can leave an empty file.

    Args:
      path: the file; an older one is replaced.
      content: all of it, a str as UTF-8; or a function that writes it to the path it is given, whose
        suffix is not that of `path`.

    Raises:
      UserError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{_within(path.name, 200)}.{os.getpid()}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if is_disk_full(error):
            raise UserError(
                f"no space left on the disk while writing {path}: free some and run the same "
                "command again"
            ) from error
        if error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON-ready values with `atomic_write`."""
    atomic_write(path, json.dumps(value, indent=1) + "\n")


def _within(name: str, limit: int) -> str:
    """`name`, cut to so many bytes: file systems allow 255."""
    return os.fsdecode(os.fsencode(name)[:limit]) if len(os.fsencode(name)) > limit else name


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on disk."""
    is_directory = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not is_directory:  # some file systems cannot do it for directories
            raise
    finally:
        os.close(descriptor)


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed `atomic_write`, or an earlier version's, left behind."""
    return (path.name.startswith(".") and path.suffix == ".tmp") or path.name == "config.tmp"


def remove_leftovers(directory: Path, names: str) -> None:
    """Removes what writers that were killed in `atomic_write` left in a directory.

    Args:
      directory: nothing below it is looked at; it need not exist.
      names: regular expression of the whole names of the files that were to be written. What a process
        that is alive on this host may be writing stays.
    """
    pattern = re.compile(rf"\.(?:{names})\.(?P<pid>[1-9][0-9]*)\.tmp", re.ASCII)
    for path in directory.glob(".*.tmp"):
        found = pattern.fullmatch(path.name)
        if found and path.is_file() and not path.is_symlink() and not _is_alive(int(found["pid"])):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is a full disk; TensorStore only says so in text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            return True
        if isinstance(error, BaseExceptionGroup) and any(map(is_disk_full, error.exceptions)):
            return True
        error = error.__cause__ or error.__context__
    return False


def access_error(error: BaseException | None) -> int | None:
    """The errno of what kept the process from reading, if an error, or one behind it, is no damage.

    TensorStore only says so in text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in ACCESS_ERRORS:
            return error.errno
        for code in ACCESS_ERRORS:
            if os.strerror(code) in str(error):
                return code
        error = error.__cause__ or error.__context__
    return None


def unreadable(path: Path, code: int) -> UserError:
    """The error of a file or directory that may be whole, but cannot be read for the reason `code`."""
    advice = _ADVICE.get(code, "it may be whole: run the same command again, once it can be read")
    return UserError(f"cannot read {path}: {os.strerror(code)}; {advice}")


def read_text(path: Path) -> str:
    """Reads a text file.

    Raises:
      UserError: it is missing, unreadable, not UTF-8, too large or no regular file.
    """
    try:
        return untrusted.read_text(path)
    except UserError as error:
        _raise_if_unreadable(path, error)
        raise DamagedError(str(error)) from error


def read_json(path: Path, kind: type = object, advice: str = "copy it back") -> Any:
    """Parses a JSON file.

    Args:
      path: of the file.
      kind: what must be in it, such as dict.
      advice: what a person can do about a damaged one.

    Raises:
      UserError: it cannot be read or parsed, or holds something else.
    """
    try:
        if not gcs.is_gcs(path) and untrusted.is_file(path) and path.stat().st_size == 0:
            raise DamagedError(f"{path} is empty, so it is damaged")
        value = untrusted.read_json(path)
    except UserError as error:
        _raise_if_unreadable(path, error)
        raise DamagedError(f"{error}: {advice}") from error
    if not isinstance(value, kind):
        wanted, found = "object" if kind is dict else kind.__name__, type(value).__name__
        raise DamagedError(
            f"{path} is damaged, it must hold one JSON {wanted}, not a {found}: {advice}"
        )
    return value


def _raise_if_unreadable(path: Path, error: UserError) -> None:
    """Raises what `unreadable` says, if a file was not even read."""
    if isinstance(error.__cause__, OSError) and (code := access_error(error.__cause__)):
        raise unreadable(path, code) from error


def read_json_lines(path: Path, is_sound: Callable[[Any], bool]) -> list[Any]:
    """The values of a file with one JSON value a line; none if there is no such file.

    A last line that a kill cut short is left out. So are damaged ones, with a line on stderr.

    Args:
      path: of the file.
      is_sound: whether a value is one that may be in it.

    Raises:
      UserError: it cannot be read.
    """
    if not untrusted.is_file(path):
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise unreadable(path, error.errno) from error
    values, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            sound = is_sound(value)
        except (ValueError, RecursionError):
            sound = False
        if sound:
            values.append(value)
        elif number < len(lines):
            damaged.append(str(number))
    if damaged:
        shown = ", ".join(damaged[:5]) + (" ..." if len(damaged) > 5 else "")
        print(
            f"warning: {path} is damaged: left out {len(damaged)} of its {len(lines) - 1} lines "
            f"(line {shown})",
            file=sys.stderr,
        )
    return values
