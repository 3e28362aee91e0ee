"""Orbax with this project's manners: quiet, one-line errors, arrays as plain nested dicts."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging as python_logging
import math
import os
import re
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from janus_jax import untrusted
from janus_jax.errors import UserError

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of everything Orbax has not finished

# The process may not or cannot read at the moment; this says nothing of what is in the file.
_HINDRANCES = {
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


class _Silence:
    """What Orbax's and TensorStore's threads say, thrown away; `last` is when they last spoke."""

    def __init__(self):
        self.last = time.monotonic()

    def __call__(self, *_: object) -> None:
        self.last = time.monotonic()


@contextlib.contextmanager
def quiet() -> Iterator[_Silence]:
    """Hides Orbax's log lines and its worker threads' tracebacks (the error still raises)."""
    silence, asyncio = _Silence(), python_logging.getLogger("asyncio")
    verbosity, level = logging.get_verbosity(), asyncio.level
    # TensorStore's own threads report to `sys.excepthook`, Python's to the others.
    hooks = threading.excepthook, sys.unraisablehook, sys.excepthook
    logging.set_verbosity(logging.FATAL)
    asyncio.setLevel(python_logging.CRITICAL + 1)
    threading.excepthook = sys.unraisablehook = sys.excepthook = silence
    try:
        yield silence
    finally:
        logging.set_verbosity(verbosity)
        asyncio.setLevel(level)
        threading.excepthook, sys.unraisablehook, sys.excepthook = hooks


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


def hindrance(error: BaseException | None) -> int | None:
    """The errno of what kept the process from reading, if an error, or one behind it, is no damage.

    TensorStore only says so in text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _HINDRANCES:
            return error.errno
        for code in _HINDRANCES:
            if os.strerror(code) in str(error):
                return code
        error = error.__cause__ or error.__context__
    return None


def _hindered(path: Path) -> tuple[Path, int] | None:
    """The first file or directory at or below `path` that cannot be opened, and the errno.

    Orbax takes what it may not read for something that is not there.
    """
    errors: list[OSError] = []
    for parent, _, files in os.walk(path, onerror=errors.append):
        for name in files:
            try:
                os.close(os.open(os.path.join(parent, name), os.O_RDONLY | os.O_NONBLOCK))
            except OSError as error:
                errors.append(error)
    found = [(Path(e.filename or path), e.errno) for e in errors if e.errno in _HINDRANCES]
    return found[0] if found else None


def unreadable(path: Path, code: int) -> UserError:
    """The error of a file or directory that may be whole, but cannot be read for the reason `code`."""
    advice = _ADVICE.get(code, "it may be whole: run the same command again, once it can be read")
    return UserError(f"cannot read {path}: {os.strerror(code)}; {advice}")


@contextlib.contextmanager
def writing(directory: Path, intact: str, *trees: Any) -> Iterator[None]:
    """Turns a full disk into a `UserError` and removes what was half written in `directory`.

    Args:
      directory: where the temporary directories are.
      intact: what the person still has, for the message.
      *trees: what will be written. Orbax's threads go on failing after it has raised, so a lack of
        space that can be seen beforehand is not left to them.
    """
    needed, free = tree_bytes(trees), _free_bytes(directory)
    if needed > free:
        raise UserError(
            f"no space left on the disk of {directory}: {math.ceil(needed / 1e6)} MB are needed, "
            f"{math.floor(free / 1e6)} MB are free; {intact}"
        )
    full = False
    with quiet() as silence:
        try:
            yield
        except (OSError, ValueError, RuntimeError, BaseExceptionGroup) as error:
            if not is_disk_full(error):
                raise
            _forget(error)
            _wait_for_threads(directory, silence)
            full = True
    if full:
        raise UserError(f"no space left on the disk of {directory}: free some; {intact}")


def _forget(error: BaseException | None) -> None:
    """Lets go of the tasks that failed: each complains when it is freed, the last ones at exit."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
            _forget(part)
        error = error.__cause__ or error.__context__


def _wait_for_threads(directory: Path, silence: _Silence, still: float = 0.5) -> None:
    """Removes what was half written, until nothing has written or complained for `still` seconds."""
    silence()
    deadline = time.monotonic() + 60
    while time.monotonic() < min(silence.last + still, deadline):
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # never awaited
            gc.collect()
        for path in directory.glob(f"*{TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
            silence()
        time.sleep(still / 10)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays in a tree."""
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))


def _free_bytes(directory: Path) -> float:
    if jax.process_count() > 1:  # processes that saw different numbers would wait for each other
        return float("inf")
    place = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(place).free


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path, as {"decoder/final_norm/scale": leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Says how two flat trees differ in names or shapes, by the first name that does; else None."""
    for name in sorted({*found, *wanted}):
        if name not in found:
            return f"{name!r} is missing"
        if name not in wanted:
            return f"{name!r} does not belong"
        if tuple(found[name].shape) != tuple(wanted[name].shape):
            return f"{name!r} has shape {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
    return None


def tree_handler() -> ocp.PyTreeCheckpointHandler:
    """How trees of arrays are stored.

    Uncompressed: weights hardly shrink and zstd is slow. Small arrays are not cut over the devices
    that hold copies of them: every cut is a program to compile. No sharding file: readers say what
    they want.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=2**24, enable_write_sharding_file=False
    )
    scalars = ocp.type_handlers.ScalarHandler()
    registry = ocp.type_handlers.create_type_handler_registry(
        (int, scalars),
        (float, scalars),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (jax.Array, arrays),
    )
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of arrays to a new directory, which appears only when it is complete."""
    with ocp.Checkpointer(tree_handler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def read_shapes(path: Path) -> dict[str, Any]:
    """The saved tree with array metadata (`.shape`, `.dtype`) as leaves; reads no array.

    Raises:
      UserError: there is no readable tree in `path`.
    """
    with reading(path):
        return ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree


def read_tree(path: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The saved tree as host numpy arrays, whatever devices it was saved from.

    Args:
      path: what `save_tree`, or a manager for one item, wrote.
      shapes: from `read_shapes`.

    Raises:
      UserError: a file is damaged.
    """
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    with reading(path):
        return ocp.PyTreeCheckpointer().restore(path, restore_args=as_numpy)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore say about damaged files into a `DamagedError`.

    Raises:
      UserError: files cannot be read, and may be whole.
    """
    try:
        with quiet():
            yield
    except (UserError, MemoryError, RuntimeError):  # of JAX: the device has no memory left
        raise
    except Exception as error:  # some damage is a bare Exception of Orbax
        place, code = _hindered(path) or (path, hindrance(error))
        if code:
            raise unreadable(place, code) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedError(
            f"cannot read the checkpoint {path}, it may be damaged: {reason}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a small file as `write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a small file so that it has its old content or its new one, whatever happens.

    Under a temporary name, renamed when it is on disk: without that, a machine that stops right
    after the renaming can leave an empty file.

    Raises:
      UserError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if is_disk_full(error):
            raise UserError(
                f"no space left on the disk while writing {path}: free some and run the same "
                "command again"
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed `write_bytes`, or an earlier version's, left behind."""
    return (path.name.startswith(".") and path.suffix == ".tmp") or path.name == "config.tmp"


def remove_leftovers(directory: Path, names: str) -> None:
    """Removes what writers that were killed in `write_bytes` left in a directory.

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


def read_text(path: Path) -> str:
    """Reads a text file.

    Raises:
      UserError: it is missing, unreadable, not UTF-8, too large or no regular file.
    """
    try:
        return untrusted.read_text(path)
    except UserError as error:
        _raise_hindrance(path, error)
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
        if untrusted.is_file(path) and path.stat().st_size == 0:
            raise DamagedError(f"{path} is empty, so it is damaged")
        value = untrusted.read_json(path)
    except UserError as error:
        _raise_hindrance(path, error)
        raise DamagedError(f"{error}: {advice}") from error
    if not isinstance(value, kind):
        found = type(value).__name__
        raise DamagedError(f"{path} is damaged, it holds a {found}, no {kind.__name__}: {advice}")
    return value


def _raise_hindrance(path: Path, error: UserError) -> None:
    """Raises what `unreadable` says, if a file was not even read."""
    if isinstance(error.__cause__, OSError) and (code := hindrance(error.__cause__)):
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
