"""Where records lie in a file, found once and kept in the user's cache.

An index is a few arrays and a small JSON value in one file: a line of JSON that names the arrays, then their
bytes. A large one is mapped into memory, so that processes share it. One that is damaged, or of a file that
has changed (size, time of change), is made again; a cache that cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.containers import stores
from janus_jax.files import atomic_write
from janus_jax.gcs import is_gcs
from janus_jax.places import make_directory, user_cache

_VERSION = 1
_MAPPED = 2**20  # bytes from which on an index is mapped: each one that is holds a file open
_ALIGNED = 64


@dataclasses.dataclass(frozen=True)
class Index:
    """Arrays, a JSON value, and a JSON value that changes when the file does (None: `stores.signature_of`)."""

    arrays: Mapping[str, np.ndarray]
    meta: Any = None
    signature: Any = None


def cached_index(
    kind: str,
    path: str | os.PathLike,
    build: Callable[[], Index],
    is_current: Callable[[Any], bool] | None = None,
) -> Index:
    """The index of a file, from the cache if it is there.

    Args:
      kind: of index, with a version and what its making depends on.
      path: of the file or directory.
      build: makes the index.
      is_current: whether an index with this signature is one of the file as it is now, where `build` gives
        signatures of its own.
    """
    is_current = is_current or (lambda signature: signature == stores.signature_of(path))
    key = [_VERSION, kind, os.fspath(path) if is_gcs(path) else os.path.realpath(path)]
    place = _place(key)
    if place is None:
        return build()
    try:
        if (index := _load(place, key, is_current)) is not None:
            return index
    except (OSError, ValueError, TypeError, LookupError):
        pass  # it is damaged or not there
    # Of a file that changes meanwhile, the index is made again next time.
    before = stores.signature_of(path)
    index = build()
    if index.signature is None:
        index = dataclasses.replace(index, signature=before)
    with contextlib.suppress(OSError, ValueError):  # UserError is one
        make_directory(place.parent)
        atomic_write(place, lambda temporary: _write(temporary, key, index))
        # What is mapped from the file is memory that processes share.
        return _load(place, key, is_current) or index
    return index


def _place(key: list[Any]) -> Path | None:
    cache = user_cache()
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return cache and cache / "indices" / f"{name}.index"


def _write(place: Path, key: list[Any], index: Index) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in index.arrays.items()}
    checksum = 0
    for array in arrays.values():
        checksum = zlib.crc32(_bytes_of(array), checksum)
    header = {
        "key": key,
        "signature": index.signature,
        "meta": index.meta,
        "arrays": {n: [a.dtype.str, len(a)] for n, a in arrays.items()},
        "checksum": checksum,
    }
    with open(place, "wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        for array in arrays.values():
            file.write(b"\0" * (-file.tell() % _ALIGNED))
            file.write(_bytes_of(array))


def _load(place: Path, key: list[Any], is_current: Callable[[Any], bool]) -> Index | None:
    """None where it is of a file that has changed; raises where it is damaged."""
    with open(place, "rb") as file:
        header = json.loads(file.readline())
        if header["key"] != key or not is_current(header["signature"]):
            return None
        at, size = file.tell(), os.fstat(file.fileno()).st_size
        if size > _MAPPED:
            content = np.memmap(file, np.uint8, "r")
        else:
            file.seek(0)
            content = np.frombuffer(file.read(), np.uint8)
    arrays, checksum = {}, 0
    for name, (kind, length) in header["arrays"].items():
        dtype = np.dtype(kind)
        at += -at % _ALIGNED
        piece = content[at : at + length * dtype.itemsize]
        checksum = zlib.crc32(piece, checksum)
        arrays[name] = np.asarray(piece).view(dtype)
        if len(arrays[name]) != length:
            raise ValueError("it is cut off")
        at += len(piece)
    if checksum != header["checksum"]:
        raise ValueError("it is damaged")
    return Index(arrays, header["meta"])


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(array.view(np.uint8))
