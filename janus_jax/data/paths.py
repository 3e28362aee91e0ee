"""From what a person writes as a path to files: patterns, ranges, directories; and where pictures are."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Sequence
from typing import Any

from janus_jax import untrusted
from janus_jax.data.containers import stores
from janus_jax.data.containers.parquet import dataset_files
from janus_jax.errors import UserError
from janus_jax.gcs import PREFIX, check, is_gcs
from janus_jax.places import check_local

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
# What is mapped into memory, or opened by libraries that know files alone.
_ON_DISK = {".arrow", ".array_record", ".arrayrecord", ".riegeli"}
_MOST = 1_000_000  # files that a pattern may stand for


def find_paths(
    path: str | Sequence[str], folders: bool, suffixes: Sequence[str], split: str | None
) -> list[str]:
    """The files of a path, each once; those of one pattern by name.

    Args:
      path: names, or patterns with `*`, `?`, `[...]`, `**` and `{a,b}` or `{000..099}`, of files and directories.
      folders: a directory is what is looked for, not what is in it.
      suffixes: of files that are taken from a directory.
      split: of a dataset in a directory; None takes "train" where there are several.

    Raises:
      UserError: a name or pattern without a file.
    """
    patterns = [path] if isinstance(path, str) else path
    if not isinstance(patterns, list | tuple) or not patterns:
        raise UserError(f"path must be a name or a list of names, not {untrusted.shown(path)}")
    found: list[str] = []
    splits = False  # whether the split has chosen any
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise UserError(f"path must be a text, not {untrusted.shown(pattern)}")
        if is_gcs(pattern):
            found += _objects(pattern, folders, suffixes)
            continue
        check_local(pattern, "path")
        for name in _matching(os.path.expanduser(pattern)):
            if folders and not os.path.isdir(name):
                raise UserError(
                    f"path {untrusted.printable(name, 200)} is a file: a folder is needed"
                )
            if folders or not os.path.isdir(name):
                found.append(name)
            elif _is_dataset(name, suffixes):
                found += dataset_files(name, split)
                splits = True
            else:
                found += _in_directory(name, suffixes)
    if split and not splits:
        raise UserError(
            f"split {split!r}: only directories of Parquet or Arrow files have splits; name the files of one"
        )
    return list(dict.fromkeys(found))


def picture_roots(image_root: Any, paths: Sequence[str]) -> tuple[str, ...]:
    """The directories of pictures, those of the files if none are given, as real paths.

    Raises:
      UserError: one that is not there.
    """
    if image_root is None:
        near = [path if os.path.isdir(path) else os.path.dirname(path) or "." for path in paths]
        return tuple(dict.fromkeys(_root(place) for place in near))
    roots = [image_root] if isinstance(image_root, str) else image_root
    if not isinstance(roots, list | tuple) or not all(isinstance(r, str) and r for r in roots):
        raise UserError(
            f"image_root must be a directory or a list of them, not {untrusted.shown(image_root)}"
        )
    for root in roots:
        if is_gcs(root):
            _ask_once(root)
            continue
        check_local(root, "image_root")
        if not os.path.isdir(os.path.expanduser(root)):
            raise UserError(f"image_root {untrusted.printable(root, 200)} is no directory")
    return tuple(_root(os.path.expanduser(root)) for root in roots)


def _root(place: str) -> str:
    return place.rstrip("/") if is_gcs(place) else os.path.realpath(place)


def _objects(pattern: str, folders: bool, suffixes: Sequence[str]) -> list[str]:
    """Those of one pattern that begins with gs://."""
    shown = untrusted.printable(pattern, 200)
    if folders or not set(suffixes) - _ON_DISK:
        raise UserError(
            f"path {shown}: this format is read from a disk: copy it there (gcloud storage cp -r), or mount the "
            "bucket (gcsfuse)"
        )
    _ask_once(pattern)
    found = []
    for expanded in _expanded(pattern):
        names = stores.matching(expanded)
        if not names:
            raise UserError(f"path {untrusted.printable(expanded, 200)}: there is no such object")
        for name in names:
            if not stores.is_directory(name):
                found.append(name)
                continue
            inside = [n for n in stores.in_directory(name) if n.lower().endswith(tuple(suffixes))]
            if not inside:
                raise UserError(f"path {shown}: no object in it ends in {' or '.join(suffixes)}")
            found += [f"{name.rstrip('/')}/{inner}" for inner in inside]
    for name in found:
        if name.lower().endswith(tuple(_ON_DISK)):
            raise UserError(
                f"path {untrusted.printable(name, 200)}: such files are read from a disk: copy them there "
                "(gcloud storage cp -r)"
            )
    return found


@functools.cache
def _ask_of_bucket(bucket: str) -> None:
    check(f"{PREFIX}{bucket}", "path")


def _ask_once(path: str) -> None:
    """Asks whether its bucket can be used; raises UserError."""
    _ask_of_bucket(path.removeprefix(PREFIX).partition("/")[0])


def _matching(pattern: str) -> list[str]:
    """Files and directories of one pattern."""
    if os.path.exists(pattern):  # also where its name has brackets
        return [pattern]
    names: list[str] = []
    for expanded in _expanded(pattern):
        if os.path.exists(expanded):
            names.append(expanded)
            continue
        found = sorted(glob.glob(expanded, recursive=True))
        if not found:
            raise UserError(f"path {untrusted.printable(expanded, 200)}: there is no such file")
        names += found
    return names


def _expanded(pattern: str) -> list[str]:
    """Braces as in a shell: {a,b} and {000..099}, one after the other."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    if span := _RANGE.fullmatch(found[1]):
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        if not 0 <= last - first < _MOST:
            raise UserError(f"path: {{{found[1]}}} is no range of files")
        choices = [str(number).zfill(width) for number in range(first, last + 1)]
    elif "," in found[1]:
        choices = found[1].split(",")
    else:
        return [pattern]
    rest = _expanded(pattern[found.end() :])
    return [pattern[: found.start()] + choice + end for choice in choices for end in rest]


def _in_directory(path: str, suffixes: Sequence[str]) -> list[str]:
    found = _with_suffix(path, suffixes)
    if not found:
        raise UserError(
            f"path {untrusted.printable(path, 200)}: no file in this directory ends in {' or '.join(suffixes)}"
        )
    return [os.path.join(path, name) for name in found]


def _with_suffix(path: str, suffixes: Sequence[str]) -> list[str]:
    names = sorted(os.listdir(path))
    return [n for n in names if n.lower().endswith(tuple(suffixes)) and not n.startswith(".")]


def _is_dataset(path: str, suffixes: Sequence[str]) -> bool:
    """Whether it is a directory of a Hugging Face dataset, as `save_to_disk` or a download leaves it."""
    tables = (".parquet", ".arrow")
    if ".parquet" not in suffixes:
        return False
    if any(os.path.isfile(os.path.join(path, n)) for n in ("state.json", "dataset_dict.json")):
        return True
    if _with_suffix(path, [suffix for suffix in suffixes if suffix not in tables] or ["/"]):
        return False
    # Others have their files here or below; a directory with neither may hold very many pictures.
    return any(name.endswith(tables) for _, _, names in os.walk(path) for name in names)
