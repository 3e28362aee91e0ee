"""Output directories that appear whole or not at all: built beside the path, or inside of a directory that
exists already, and moved at the end.

It is built in a staging directory, which is hidden, with a file `lock` that the writing process holds
locked. The lock ends with the process, however it ends, so that what a killed one left behind can be told
from what is still being written; the next writer removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from janus_jax.errors import UserError
from janus_jax.places import make_directory, probe

# In a staging directory. OUT replaces OLD once everything that was in the output directory has left it.
_LOCK, _NEW, _OLD, _OUT = "lock", "new", "old", "out"
# ".NAME.PID.tmp", or with some letters after the process id where there may be a lock.
_STAGING = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)(\.\w+)?\.tmp")
_STALE = 24 * 3600  # seconds after which a staging directory without a lock is abandoned
_FOREIGN = "lost+found"  # every new ext4 disk has one


def check_output_dir(
    directory: str | Path, replaceable: Callable[[Path], bool] | None = None
) -> None:
    """Checks, before any work, that a model can be written to a directory.

    Args:
      directory: it may be missing, or empty.
      replaceable: whether what is there may be replaced, or raises a UserError that says why it may not; by
        default it may not.

    Raises:
      UserError: it is taken, cannot be made or written, or another process is writing there.
    """
    target = Path(os.path.realpath(directory))
    try:
        probe(target)
        remove_stale_staging(target.parent, target.name)
        remove_stale_staging(target, target.name)
        if is_being_written(target):
            raise UserError(f"cannot write to {directory}: another process is writing there now")
        _check_contents(target, directory, replaceable)
    except OSError as error:
        raise UserError(
            f"cannot write to {directory}: {error.strerror or error}; choose another place"
        ) from error


@contextlib.contextmanager
def write_output_dir(
    directory: str | Path, replaceable: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """A path to build a directory at; at the end it takes the place of `directory`.

    Links are followed, and a directory that is there stays, such as a mount point: it is filled. If
    something is raised, everything is as before.

    Raises:
      UserError: as `check_output_dir`.
    """
    check_output_dir(directory, replaceable)
    target = Path(os.path.realpath(directory))
    home = target if target.exists() else target.parent
    made = [p for p in (home, *home.parents) if not p.exists()]
    make_directory(home)
    try:
        with _staging_dir(home, target.name) as staging:
            new = staging / _NEW
            try:
                yield new
            except UserError as error:  # it may name a path that the user did not choose
                raise UserError(str(error).replace(str(new), str(directory))) from error
            if home == target:
                _check_contents(target, directory, replaceable)  # it may have taken hours
                _exchange(staging)
            else:
                new.rename(target)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def is_being_written(directory: Path) -> bool:
    """Whether a process that is alive is building `directory`."""
    return any(
        (staging / _LOCK).exists() and not _is_free(staging / _LOCK)
        for home in (directory, directory.parent)
        for staging in _staging_dirs(home, directory.name)
    )


def remove_stale_staging(home: Path, name: str | None = None) -> None:
    """Removes the staging directories in `home` whose processes are gone; never that of a living one.

    Args:
      home: a directory; nothing happens if it cannot be read.
      name: only staging directories of the output directory of this name; by default all.
    """
    for staging in _staging_dirs(home, name):
        lock = staging / _LOCK
        with contextlib.suppress(OSError):
            if lock.exists():
                with _locked(lock):
                    _clear(staging)
            # Of an earlier version, or on a disk without locks. Its process may be on another machine.
            elif not _runs(staging) and time.time() - _last_change(staging) > _STALE:
                _clear(staging)


def _check_contents(
    target: Path, name: str | Path, replaceable: Callable[[Path], bool] | None
) -> None:
    if contents(target) and not (replaceable and replaceable(target)):
        raise UserError(f"cannot write to {name}: it exists and is not empty")


def _staging_dirs(home: Path, name: str | None) -> list[Path]:
    try:
        paths = list(home.iterdir())
    except OSError:
        return []
    matches = [(p, _STAGING.fullmatch(p.name)) for p in paths]
    stem = name and _stem(name)
    return [p for p, m in matches if m and stem in (None, m["name"]) and _is_directory(p)]


@contextlib.contextmanager
def _staging_dir(home: Path, name: str) -> Iterator[Path]:
    staging = Path(
        tempfile.mkdtemp(prefix=f".{_stem(name)}.{os.getpid()}.", suffix=".tmp", dir=home)
    )
    try:
        with contextlib.ExitStack() as stack:
            unnamed = staging / f"{_LOCK}.new"
            unnamed.touch()
            try:
                stack.enter_context(_locked(unnamed))
                unnamed.rename(staging / _LOCK)  # never seen without being locked
            except OSError:  # such as a network disk without locks
                unnamed.unlink()
            try:
                yield staging
            finally:
                _clear(staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(staging: Path) -> None:
    """Puts what was built in the place of everything else beside the staging directory."""
    old = staging / _OLD
    old.mkdir()
    for path in contents(staging.parent):
        path.rename(old / path.name)
    old.rename(staging / _OUT)
    _fill(staging)


def _fill(staging: Path) -> None:
    # A directory is known by its janus.json or config.json: these come last.
    for path in sorted((staging / _NEW).iterdir(), key=lambda p: (p.suffix == ".json", p.name)):
        path.rename(staging.parent / path.name)


def _clear(staging: Path) -> None:
    """Removes a staging directory; ends an exchange that was cut short: back, or forward once all was out."""
    if (staging / _OUT).is_dir() and (staging / _NEW).is_dir():
        _fill(staging)
    elif (staging / _OLD).is_dir():
        for path in (staging / _OLD).iterdir():
            path.rename(staging.parent / path.name)
    shutil.rmtree(staging, ignore_errors=True)


def contents(directory: Path) -> list[Path]:
    """What is in a directory, JSON files first, without staging directories; [] if it is missing."""
    if not directory.exists():
        return []
    mine = {*_staging_dirs(directory, directory.name), directory / _FOREIGN}
    found = [path for path in directory.iterdir() if path not in mine]
    return sorted(found, key=lambda p: (p.suffix != ".json", p.name))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file; raises OSError if another holds it, or there are no locks."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no such locks") from error
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_free(lock: Path) -> bool:
    try:
        with _locked(lock):
            return True
    except FileNotFoundError:  # removed just now
        return True
    except OSError:
        return False


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _stem(name: str) -> str:
    """The part of a directory's name that its staging directories carry: names must not get too long."""
    return name.encode(errors="surrogateescape")[:150].decode(errors="ignore")


def _runs(staging: Path) -> bool:
    match = _STAGING.fullmatch(staging.name)
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _last_change(directory: Path) -> float:
    """When anything in a directory was last changed, in seconds since the epoch."""
    times = [directory.stat().st_mtime]
    for root, directories, files in os.walk(directory):
        for name in (*directories, *files):
            times.append(os.lstat(os.path.join(root, name)).st_mtime)
    return max(times)
