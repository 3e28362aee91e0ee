"""Trees of arrays on disk, through Orbax: without its log lines, with one-line errors, as nested dicts."""

from __future__ import annotations

import contextlib
import gc
import logging as python_logging
import math
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from janus_jax import gcs
from janus_jax.errors import UserError
from janus_jax.files import (
    ACCESS_ERRORS,
    DamagedError,
    access_error,
    is_disk_full,
    unreadable,
)

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of everything Orbax has not finished


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


def _first_inaccessible(path: Path) -> tuple[Path, int] | None:
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
    found = [(Path(e.filename or path), e.errno) for e in errors if e.errno in ACCESS_ERRORS]
    return found[0] if found else None


@contextlib.contextmanager
def writing(directory: Path, intact: str, *trees: Any) -> Iterator[None]:
    """Turns a full disk into a `UserError` and removes what was half written in `directory`.

    Args:
      directory: where the temporary directories are.
      intact: what the person still has, for the message.
      *trees: what will be written. Orbax's threads go on failing after it has raised, so a lack of
        space that can be seen beforehand is not left to them.
    """
    check_room(directory, intact, *trees)
    with quiet() as silence, full_disk(directory, intact, silence):
        yield


def check_room(directory: Path, intact: str, *trees: Any) -> None:
    """Raises UserError if the disk has no room for the arrays of trees."""
    needed, free = tree_bytes(trees), _free_bytes(directory)
    if needed > free:
        raise UserError(
            f"no space left on the disk of {directory}: {math.ceil(needed / 1e6)} MB are needed, "
            f"{math.floor(free / 1e6)} MB are free; {intact}"
        )


@contextlib.contextmanager
def full_disk(directory: Path, intact: str, silence: _Silence) -> Iterator[None]:
    """The second half of `writing`, within `quiet`, which gave `silence`."""
    full = False
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
    # Processes that saw different numbers would wait for each other; a bucket has no end.
    if jax.process_count() > 1 or gcs.is_gcs(directory):
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
        place, code = _first_inaccessible(path) or (path, access_error(error))
        if code:
            raise unreadable(place, code) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedError(
            f"cannot read the checkpoint {path}, it may be damaged: {reason}"
        ) from error
