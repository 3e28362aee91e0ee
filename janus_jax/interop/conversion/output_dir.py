"""Where a new model directory is built: beside its place, or inside of it if there is one already.

What is being written lies in a workshop, a hidden directory whose file `lock` is locked by the process
that writes. The lock ends with the process, however it ends: so what a killed one has left can be told
from what is still written, and the next one removes it.
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

# In a workshop. OUT replaces OLD once all of what was in the place has left it.
_LOCK, _NEW, _OLD, _OUT = "lock", "new", "old", "out"
# ".NAME.PID.tmp", or with some letters after the process id where there may be a lock.
_WORKSHOP = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)(\.\w+)?\.tmp")
_UNTOUCHED = 24 * 3600  # seconds after which a workshop without a lock is nobody's
_FOREIGN = "lost+found"  # every new ext4 disk has one


def check_place(directory: str | Path, replaceable: Callable[[Path], bool] | None = None) -> None:
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
        remove_left(target.parent, target.name)
        remove_left(target, target.name)
        if is_busy(target):
            raise UserError(f"cannot write to {directory}: another process is writing there now")
        _check_contents(target, directory, replaceable)
    except OSError as error:
        raise UserError(
            f"cannot write to {directory}: {error.strerror or error}; choose another place"
        ) from error


@contextlib.contextmanager
def building(
    directory: str | Path, replaceable: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """A path to build a directory at; at the end it takes the place of `directory`.

    Links are followed, and a directory that is there stays, such as a mount point: it is filled. If
    something is raised, everything is as before.

    Raises:
      UserError: as `check_place`.
    """
    check_place(directory, replaceable)
    target = Path(os.path.realpath(directory))
    home = target if target.exists() else target.parent
    made = [p for p in (home, *home.parents) if not p.exists()]
    make_directory(home)
    try:
        with _workshop(home, target.name) as workshop:
            new = workshop / _NEW
            try:
                yield new
            except UserError as error:  # it may name a path that nobody chose
                raise UserError(str(error).replace(str(new), str(directory))) from error
            if home == target:
                _check_contents(target, directory, replaceable)  # it may have taken hours
                _exchange(workshop)
            else:
                new.rename(target)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def is_busy(directory: Path) -> bool:
    """Whether a process that is alive is building `directory`."""
    return any(
        (workshop / _LOCK).exists() and not _is_free(workshop / _LOCK)
        for home in (directory, directory.parent)
        for workshop in _workshops(home, directory.name)
    )


def remove_left(home: Path, name: str | None = None) -> None:
    """Removes the workshops in `home` whose processes are gone; never that of a living one.

    Args:
      home: a directory; nothing happens if it cannot be read.
      name: only workshops of this place; by default all.
    """
    for workshop in _workshops(home, name):
        lock = workshop / _LOCK
        with contextlib.suppress(OSError):
            if lock.exists():
                with _locked(lock):
                    _clear(workshop)
            # Of an earlier version, or on a disk without locks. Its process may be on another machine.
            elif not _runs(workshop) and time.time() - _touched(workshop) > _UNTOUCHED:
                _clear(workshop)


def _check_contents(
    target: Path, name: str | Path, replaceable: Callable[[Path], bool] | None
) -> None:
    if contents(target) and not (replaceable and replaceable(target)):
        raise UserError(f"cannot write to {name}: it exists and is not empty")


def _workshops(home: Path, name: str | None) -> list[Path]:
    try:
        paths = list(home.iterdir())
    except OSError:
        return []
    matches = [(p, _WORKSHOP.fullmatch(p.name)) for p in paths]
    stem = name and _stem(name)
    return [p for p, m in matches if m and stem in (None, m["name"]) and _is_directory(p)]


@contextlib.contextmanager
def _workshop(home: Path, name: str) -> Iterator[Path]:
    workshop = Path(
        tempfile.mkdtemp(prefix=f".{_stem(name)}.{os.getpid()}.", suffix=".tmp", dir=home)
    )
    try:
        with contextlib.ExitStack() as stack:
            unnamed = workshop / f"{_LOCK}.new"
            unnamed.touch()
            try:
                stack.enter_context(_locked(unnamed))
                unnamed.rename(workshop / _LOCK)  # never seen without being locked
            except OSError:  # such as a network disk without locks
                unnamed.unlink()
            try:
                yield workshop
            finally:
                _clear(workshop)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _exchange(workshop: Path) -> None:
    """Puts what was built in the place of what else lies beside the workshop."""
    old = workshop / _OLD
    old.mkdir()
    for path in contents(workshop.parent):
        path.rename(old / path.name)
    old.rename(workshop / _OUT)
    _fill(workshop)


def _fill(workshop: Path) -> None:
    # A directory is known by its card or config.json: these come last.
    for path in sorted((workshop / _NEW).iterdir(), key=lambda p: (p.suffix == ".json", p.name)):
        path.rename(workshop.parent / path.name)


def _clear(workshop: Path) -> None:
    """Removes a workshop; ends an exchange that was cut short: back, or forward once all was out."""
    if (workshop / _OUT).is_dir() and (workshop / _NEW).is_dir():
        _fill(workshop)
    elif (workshop / _OLD).is_dir():
        for path in (workshop / _OLD).iterdir():
            path.rename(workshop.parent / path.name)
    shutil.rmtree(workshop, ignore_errors=True)


def contents(directory: Path) -> list[Path]:
    """What is in a directory, cards and configs first, without workshops; [] if it is missing."""
    if not directory.exists():
        return []
    mine = {*_workshops(directory, directory.name), directory / _FOREIGN}
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
    """The part of a place's name that its workshops bear: names must not get too long."""
    return name.encode(errors="surrogateescape")[:150].decode(errors="ignore")


def _runs(workshop: Path) -> bool:
    match = _WORKSHOP.fullmatch(workshop.name)
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _touched(directory: Path) -> float:
    """When anything in a directory was last changed, in seconds since the epoch."""
    times = [directory.stat().st_mtime]
    for root, directories, files in os.walk(directory):
        for name in (*directories, *files):
            times.append(os.lstat(os.path.join(root, name)).st_mtime)
    return max(times)
