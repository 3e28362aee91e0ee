"""Checksums of the files of a checkpoint or a model, so that damage is found when they are read.

`checksums.json` lies beside the files it lists:

    {"chunk_bytes": 8388608, "step": 14, "files": {"params/_METADATA":
      {"bytes": 9142, "crc32": ["5a1c03fe"]}, ...}, "crc32": "97b0d2e4"}

A file has one CRC-32 for every chunk of it, so that several threads can share a large file; the last
field is that of the other fields. CRC-32 finds every single bit and every run of up to 32 bits, and
misses other damage of a chunk once in four thousand million times. It guards against disks, memory
and copies that fail, not against people.

In a bucket an object has a "crc32c" instead: the store's own, of the bytes that it was given and that it watches
over, so that listing a step compares it, and nothing is read back.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orbax.checkpoint.path import atomicity

from janus_jax import gcs
from janus_jax.errors import UserError
from janus_jax.files import access_error, read_json, sync, unreadable, write_json

NAME = "checksums.json"
CHUNK = 2**23
# Orbax writes these last, and reads no array from them.
MARK = atomicity.COMMIT_SUCCESS_FILE
_BOOKKEEPING = {"_CHECKPOINT_METADATA", MARK}


def write(directory: Path, names: Iterable[str], step: int | None = None) -> None:
    """Writes `checksums.json` for what is in a directory, and sees to it that all of it is on disk.

    Args:
      directory: where the files are.
      names: files and directories in it.
      step: of a training run.
    """
    paths = [path for name in names for path in _files(directory / name)]
    for path in paths:
        sync(path)
    for folder in {path.parent for path in paths}:
        sync(folder)
    sizes = [path.stat().st_size for path in paths]
    files = {
        path.relative_to(directory).as_posix(): {"bytes": size, "crc32": sums}
        for path, size, sums in zip(paths, sizes, _sums(paths, sizes, CHUNK), strict=True)
    }
    content = {"chunk_bytes": CHUNK, "step": step, "files": files}
    content["crc32"] = _own_sum(content)
    write_json(directory / NAME, content)


def write_of_store(directory: Path, step: int) -> None:
    """Writes `checksums.json` for all objects of a step in a bucket, as the store has them."""
    files = {
        name: {"bytes": int(info["size"]), "crc32c": info["crc32c"]}
        for name, info in sorted(gcs.objects(directory).items())
        if name not in _BOOKKEEPING
    }
    content = {"chunk_bytes": CHUNK, "step": step, "files": files}
    content["crc32"] = _own_sum(content)
    (directory / NAME).write_text(json.dumps(content, indent=1) + "\n")


def damage(directory: Path, below: str = "", step: int | None = None) -> str | None:
    """Compares a directory with its `checksums.json`.

    Args:
      directory: where `checksums.json` is. Without one, which is how earlier versions wrote, nothing
        is compared.
      below: a file or directory in it that alone is to be compared; the default is all of them.
      step: that the files must be of.

    Returns:
      None if nothing is wrong, or the first thing that is, such as "params/_METADATA is missing".

    Raises:
      UserError: something cannot be read, and may be whole.
    """
    try:
        with gcs.asking(directory):
            if not (directory / NAME).exists():
                return None
            text = (directory / NAME).read_bytes()
        content = json.loads(text)
        chunk, files = content["chunk_bytes"], content["files"]
        if content.pop("crc32") != _own_sum(content):
            return f"{NAME} is damaged"
    except OSError as error:
        return _unreadable(directory, NAME, error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{NAME} is damaged"
    if step is not None and content["step"] != step:
        return f"it is a copy of step {content['step']}"
    listed = {
        n: f for n, f in files.items() if not below or n == below or n.startswith(f"{below}/")
    }
    if gcs.is_gcs(directory):
        return _differs_in_store(directory, listed, chunk)
    return _missing(directory, listed) or _different(directory, listed, chunk)


def listed(directory: Path) -> set[str] | None:
    """Names of the files that a directory's `checksums.json` lists; None without one that can be read."""
    try:
        return set(read_json(directory / NAME)["files"])
    except (UserError, TypeError, KeyError):
        return None


def intact(directory: Path) -> bool:
    """Whether a directory has checksums, and all that they list is as it was written."""
    return (directory / NAME).exists() and damage(directory) is None


def _missing(directory: Path, listed: dict[str, Any]) -> str | None:
    """The first file that is not there or not as long as it was: found without reading."""
    for name, was in listed.items():
        path = directory / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
        except OSError as error:
            return _unreadable(directory, name, error)
        if size != was["bytes"]:
            return f"{name} has {size} bytes, not {was['bytes']}"
    return None


def _different(directory: Path, listed: dict[str, Any], chunk: int) -> str | None:
    ours = {name: was for name, was in listed.items() if "crc32" in was}
    paths = [directory / name for name in ours]
    found = _sums(paths, [was["bytes"] for was in ours.values()], chunk)
    for name, was in listed.items():
        try:
            same = next(found) == was["crc32"] if name in ours else _is_copy(directory / name, was)
        except OSError as error:
            return _unreadable(directory, name, error)
        if not same:
            return f"{name} differs from its checksum"
    return None


def _differs_in_store(directory: Path, listed: dict[str, Any], chunk: int) -> str | None:
    """Of a step in a bucket; files with sums of our own, which were copied there, are read."""
    found = gcs.objects(directory)
    for name, was in listed.items():
        if name not in found:
            return f"{name} is missing"
        if (size := int(found[name]["size"])) != was["bytes"]:
            return f"{name} has {size} bytes, not {was['bytes']}"
        if found[name]["crc32c"] != was.get("crc32c", found[name]["crc32c"]):
            return f"{name} differs from its checksum"
    with gcs.asking(directory):
        ours = {name: was for name, was in listed.items() if "crc32c" not in was}
        return _different(directory, ours, chunk)


def _is_copy(path: Path, was: dict[str, Any]) -> bool:
    """Whether a file is an object of a bucket, once copied here; taken for one without google-crc32c."""
    try:
        import google_crc32c
    except ImportError:
        return True
    found = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            found.update(block)
    return base64.b64encode(found.digest()).decode() == was["crc32c"]


def _unreadable(directory: Path, name: str, error: OSError) -> str:
    if code := access_error(error):
        raise unreadable(directory / name, code) from error
    return f"{name} cannot be read ({error.strerror})"


def _files(path: Path) -> list[Path]:
    found = path.rglob("*") if path.is_dir() else [path]
    return sorted(file for file in found if file.is_file())


def _sums(paths: list[Path], sizes: list[int], chunk: int) -> Iterator[list[str]]:
    """The sums of one file after the other, in `paths`' order; `sizes` are theirs.

    Raises:
      OSError: when it is the turn of a file that cannot be read.
    """
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        try:
            jobs = []
            for path, size in zip(paths, sizes, strict=True):
                offsets = range(0, size, chunk)
                jobs.append([pool.submit(_sum, path, offset, chunk) for offset in offsets])
            for job in jobs:
                yield [part.result() for part in job]
        finally:
            pool.shutdown(cancel_futures=True)


def _sum(path: Path, offset: int, size: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return f"{zlib.crc32(file.read(size)):08x}"


def _own_sum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


class SummedPath(atomicity.AtomicRenameTemporaryPath):
    """Where Orbax writes a step: before the step is renamed into place it gets its checksums."""

    async def finalize(self):
        directory, final = Path(self.get()), Path(self.get_final())
        step = final.name.isdecimal()  # Orbax finishes each item of a step in the same way
        if step:
            names = sorted(p.name for p in directory.iterdir() if p.name not in _BOOKKEEPING)
            write(directory, names, int(final.name))
        await super().finalize()
        if step:
            sync(final.parent)


class MarkedPath(atomicity.CommitFileTemporaryPath):
    """Where Orbax writes a step of a bucket, where nothing can be renamed: the last object marks it complete."""

    before_commit: Callable[[], None] = staticmethod(lambda: None)

    async def finalize(self):
        directory = self.get()
        if directory.name.isdecimal():
            write_of_store(directory, int(directory.name))
            self.before_commit()
        await super().finalize()


def temporary_path(directory: Path, before_commit: Callable[[], None] | None) -> type:
    """How Orbax is to write steps in `directory`, and to know complete ones; `before_commit`: of a bucket."""
    if not gcs.is_gcs(directory):
        return SummedPath
    return type(
        "_Path", (MarkedPath,), {"before_commit": staticmethod(before_commit or (lambda: None))}
    )
