"""Orbax with this project's manners: quiet, one-line errors, arrays as plain nested dicts."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from janus_jax import untrusted
from janus_jax.errors import UserError

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of everything Orbax has not finished


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides Orbax's log lines and its worker threads' tracebacks (the error still raises)."""
    verbosity = logging.get_verbosity()
    hooks = threading.excepthook, sys.unraisablehook
    logging.set_verbosity(logging.FATAL)
    threading.excepthook = sys.unraisablehook = lambda args: None
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        threading.excepthook, sys.unraisablehook = hooks


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
            f"no space left on the disk of {directory}: {needed / 1e6:.0f} MB are needed, "
            f"{free / 1e6:.0f} MB are free; {intact}"
        )
    try:
        with quiet():
            yield
    except (OSError, ValueError, RuntimeError, BaseExceptionGroup) as error:
        if not is_disk_full(error):
            raise
        for path in directory.glob(f"*{TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
        raise UserError(f"no space left on the disk of {directory}: free some; {intact}") from error


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
    """Turns what Orbax and TensorStore say about damaged files into a `UserError`."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot read the checkpoint {path}, it may be damaged: {reason}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise UserError(f"no space left on the disk while writing {path}: free some") from error
        raise


def read_text(path: Path) -> str:
    """Reads a text file.

    Raises:
      UserError: it is missing, unreadable, not UTF-8, too large or no regular file.
    """
    return untrusted.read_text(path)


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
      UserError: it cannot be read or parsed.
    """
    return untrusted.read_json(path)
