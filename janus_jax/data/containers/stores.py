"""Reading files of this disk and objects of a bucket (gs://bucket/name) by the same few functions.

Objects are read in ranges, so nothing is copied to the disk. A store that does not answer, after the client's
own retries, ends the run: it says nothing about the data.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO

from janus_jax import gcs, untrusted
from janus_jax.errors import RunError, UserError, one_line

_BLOCK = 2**23  # bytes that are asked for at a time where an object is read from its beginning


def open_to_read(path: str | os.PathLike) -> BinaryIO:
    """An open file; raises OSError."""
    if not gcs.is_gcs(path):
        return open(path, "rb")
    with answering(path):
        return gcs.filesystem().open(
            os.fspath(path), "rb", block_size=_BLOCK, cache_type="readahead"
        )


def size_of(path: str | os.PathLike) -> int:
    """Bytes; raises OSError."""
    return _about(path)["size"] if gcs.is_gcs(path) else os.path.getsize(path)


def signature_of(path: str | os.PathLike) -> list[Any]:
    """What changes when the content does: size, and time of change in nanoseconds or an object's generation."""
    if gcs.is_gcs(path):
        found = _about(path)
        return [found["size"], str(found.get("generation") or found.get("updated"))]
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def read_range(path: str, offset: int, size: int) -> bytes:
    """Bytes of an object; raises OSError where it is not there, or is shorter."""
    with answering(path):
        data = gcs.filesystem().cat_file(path, start=offset, end=offset + size)
    if len(data) < size:
        raise OSError(None, "it is shorter than it was", path)
    return data


def read_object(path: str) -> bytes:
    """All of an object; raises OSError where it is not there."""
    with answering(path):
        return gcs.filesystem().cat_file(path)


def matching(pattern: str) -> list[str]:
    """Objects that a pattern with `*`, `?`, `[...]` and `**` stands for, and directories of objects."""
    with answering(pattern):
        store = gcs.filesystem()
        if store.exists(pattern):
            return [pattern]
        return sorted(gcs.PREFIX + name for name in store.glob(pattern))


def is_directory(path: str) -> bool:
    with answering(path):
        return gcs.filesystem().isdir(path)


def in_directory(path: str) -> list[str]:
    """Names of the objects right in a directory of a bucket."""
    with answering(path):
        found = gcs.filesystem().ls(path, detail=True)
    return sorted(posixpath.basename(info["name"]) for info in found if info["type"] == "file")


@contextlib.contextmanager
def answering(path: str | os.PathLike) -> Iterator[None]:
    """That something is not there stays a `FileNotFoundError`.

    Raises:
      RunError: the store cannot be used now.
    """
    try:
        yield
    except (FileNotFoundError, UserError, RunError):
        raise
    except Exception as error:
        if not gcs.is_of_store(error):
            raise
        raise RunError(
            f"cannot read {untrusted.printable(path, 200)}: {one_line(error)[:200]}; run the same command again "
            "once it can be read"
        ) from error


def _about(path: str | os.PathLike) -> dict[str, Any]:
    with answering(path):
        return gcs.filesystem().info(os.fspath(path))
