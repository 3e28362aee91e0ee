"""Places that a person names: whether they can be written is known before the work, not after it."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from janus_jax import gcs
from janus_jax.errors import UserError


def user_cache() -> Path | None:
    """`$XDG_CACHE_HOME/janus_jax`, or `~/.cache/janus_jax`; None for a user who has no home."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "janus_jax"
    try:
        return Path.home() / ".cache" / "janus_jax"
    except RuntimeError:  # HOME is not set, and the user id has no entry
        return None


def probe(directory: str | Path) -> None:
    """Returns if files can be made in `directory`, or it can be made; leaves nothing behind.

    Raises:
      OSError: what stands in the way.
    """
    place = Path(os.path.realpath(directory))
    while True:
        try:
            mode = place.stat().st_mode
            break
        except FileNotFoundError:
            place = place.parent
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(place))
    with tempfile.TemporaryFile(dir=place):
        pass


def check_local(path: str | Path, flag: str) -> None:
    """Raises UserError for the address of an object store, such as `s3://bucket/run`.

    As a path it would be a directory `gs:` in the current one, on a disk that may go with the machine.
    """
    if found := re.match(r"([a-z][a-z0-9+.-]+):/+(.*)", str(path), re.IGNORECASE):
        scheme, rest = found[1].lower(), found[2]
        if scheme == "gs":
            raise UserError(f"{flag} {path}: write the address of a bucket as gs://{rest}")
        tool = {"s3": "mountpoint-s3"}.get(scheme, "its own program")
        raise UserError(
            f"{flag} {scheme}://{rest}: object stores other than gs:// are not supported: mount the bucket as "
            f"a directory ({tool}), or take a disk that stays"
        )


def checked(path: str | Path, flag: str) -> Path:
    """The absolute path of a directory, or of a place in a bucket (gs://) that answers.

    Raises:
      UserError: it is in another object store, or the bucket cannot be used.
    """
    if gcs.is_gcs(path):
        gcs.check(path, flag)
    else:
        check_local(path, flag)
    return gcs.absolute(path)


def check_directory(directory: str | Path, flag: str, files: Iterable[str] = ()) -> None:
    """Checks that results can be written to a directory; it need not exist, and is not made.

    Args:
      directory: the place.
      flag: what named it, for the message.
      files: what will be written there; an older file may be in the place, a directory may not.

    Raises:
      UserError: it cannot be made or written, or a directory has the name of a file.
    """
    try:
        probe(directory)
        for name in files:
            if Path(directory, name).is_dir():
                raise UserError(
                    f"{flag} {directory}: {name} is a directory there, and a file of this name is to "
                    "be written; move it, or choose another place"
                )
    except OSError as error:
        raise UserError(
            f"{flag} {directory} cannot be a directory to write in: {error.strerror or error}; "
            "choose another place"
        ) from error


def check_file(path: str | Path, flag: str) -> None:
    """Checks that a file can be written at `path`, in a directory that is there.

    Raises:
      UserError: it cannot.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
        if not path.absolute().parent.is_dir():
            raise UserError(f"{flag} {path}: there is no such directory to write it in")
        probe(path.absolute().parent)
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be written: {error.strerror or error}; choose another place"
        ) from error


def make_directory(directory: str | Path) -> None:
    """Makes a directory with its parents; through links, also one whose target is missing."""
    os.makedirs(os.path.realpath(directory), exist_ok=True)
