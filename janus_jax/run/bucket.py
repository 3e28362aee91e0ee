"""A run in a bucket: one writer, and a directory on this machine that holds the run's small files meanwhile.

Checkpoints are written to the bucket by all processes. Everything else is small, and written by code that appends,
renames and waits for the disk: the first process keeps it in a temporary directory, which it fills from the bucket
at the start and copies there whenever a checkpoint, a grid or a score is complete, and at the end. Before the mark
that completes a checkpoint, not after: so the bucket never has a step whose lines in metrics.jsonl it lacks. Lines
beyond its newest step do no harm, as a run that goes on drops them.

`.lock` is held by whoever wrote it, on the condition that it was not there, or still was what had been read.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax import gcs
from janus_jax.errors import RunError, UserError
from janus_jax.files import is_leftover
from janus_jax.run.claim import CHANGES, CONFIG, LOCK, check_holds_run

REFRESH = 10.0  # seconds between two writes of a lock that is held
STALE = 60.0  # seconds after which a lock that nobody wrote is no longer held
_SAMPLES = "samples"


class Lock:
    """The lock of a run in a bucket: held inside `with`.

    A lock that its process left behind, killed, is known by nobody refreshing it: watched, not told by clocks. On
    the machine of that process it is known at once.
    """

    def __init__(self, address: Path):
        self._address = address
        self._bucket, self._key = gcs.bucket(address / LOCK)
        self._me = uuid.uuid4().hex
        self._since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._generation = 0  # of the object that this process wrote
        self._written = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._writing = threading.Lock()

    def __enter__(self) -> Lock:
        with gcs.asking(self._address):
            while not self._take():
                pass
        self._thread = threading.Thread(target=self._refresh, name="lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(gcs.PATIENCE)
        with contextlib.suppress(Exception):
            blob = self._bucket.blob(self._key)
            blob.delete(if_generation_match=self._generation, timeout=gcs.PATIENCE, retry=None)

    def check(self) -> None:
        """Raises RunError if another process took the lock, as this one did not get through to the bucket."""
        if not self._lost and time.monotonic() - self._written > STALE / 2:
            with gcs.asking(self._address):
                self._lost = not self._write(self._generation)
        if self._lost:
            raise RunError(
                f"{self._address}: this process could not be heard for {STALE:.0f} s, and another run has "
                "taken over there: nothing more is written"
            )

    def _take(self) -> bool:
        """Whether the lock is held now; False: to be tried again.

        Raises:
          UserError: another process holds it.
        """
        found = self._bucket.get_blob(self._key, timeout=gcs.PATIENCE)
        if found is None:
            return self._write(0)
        generation = found.generation  # of what was seen first; reading may find a newer one
        holder = self._holder(found)
        if not _has_ended(holder) and self._is_alive(generation, holder):
            who = (
                f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
            )
            raise UserError(
                f"{self._address} is in use by another run ({who}): wait for it, or choose another --workdir; "
                f"if it is dead, delete {self._address / LOCK}"
            )
        return self._write(generation)

    def _is_alive(self, generation: int, holder: dict[str, Any]) -> bool:
        """Whether somebody writes the lock, or has let go of it (then `_take` is refused, and comes again)."""
        if _on_this_machine(holder):
            return True
        print(
            f"{self._address} is locked by process {holder.get('pid')} on {holder.get('host')}: looking for "
            f"up to {STALE:.0f} s whether it is alive",
            file=sys.stderr,
        )
        deadline = time.monotonic() + STALE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, STALE / 10))
            now = self._bucket.get_blob(self._key, timeout=gcs.PATIENCE)
            if now is None:
                return False
            if now.generation != generation:
                return True
        return False

    def _holder(self, found: Any) -> dict[str, Any]:
        from google.api_core.exceptions import NotFound

        try:
            holder = json.loads(found.download_as_bytes(timeout=gcs.PATIENCE))
        except (NotFound, ValueError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _write(self, generation: int) -> bool:
        """Whether the lock is this process's now; it is, unless the object's generation is another one."""
        from google.api_core.exceptions import PreconditionFailed
        from google.cloud.storage.retry import DEFAULT_RETRY

        retry = DEFAULT_RETRY.with_timeout(gcs.PATIENCE)
        me = {
            "id": self._me,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "boot": _boot(),
            "since": self._since,
        }
        blob = self._bucket.blob(self._key)
        with self._writing:
            try:
                blob.upload_from_string(
                    json.dumps(me),
                    if_generation_match=generation,
                    timeout=gcs.PATIENCE,
                    retry=retry,
                )
                self._generation = blob.generation
            except PreconditionFailed:
                # It may have been ours, of which the answer was lost.
                found = self._bucket.get_blob(self._key, timeout=gcs.PATIENCE)
                if found is None or self._holder(found).get("id") != self._me:
                    return False
                self._generation = found.generation
            self._written = time.monotonic()
            return True

    def _refresh(self) -> None:
        while not (self._ended.wait(REFRESH) or self._lost):
            with contextlib.suppress(
                Exception
            ):  # a store that is away for a moment is none to give up for
                self._lost = not self._write(self._generation)


class Mirror:
    """The small files of a run in a bucket, kept in a directory of this machine.

    Args:
      address: gs://bucket/run.
      files: an empty directory.
    """

    def __init__(self, address: Path, files: Path):
        self._address, self._files = address, files
        self._there: dict[str, tuple[int, int]] = {}  # size and time of what the bucket has
        self._pushing = threading.Lock()  # Orbax's thread does it, too
        self._lock = Lock(address)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the run against other processes; has its files here from the start, and there at the end.

        Raises:
          UserError: another process holds it, there is something else than a run, or the bucket cannot be used.
        """
        with gcs.asking(self._address), contextlib.suppress(FileNotFoundError):
            check_holds_run(self._address)
        with self._lock:
            self._pull()
            try:
                yield
            except BaseException as error:
                if not gcs.is_of_store(error.__cause__):
                    with contextlib.suppress(Exception):  # the first error is the one to see
                        self.push()
                raise
            self.push()

    def push(self) -> None:
        """Copies what has changed to the bucket.

        Raises:
          RunError: another run has taken over there.
          UserError: the bucket cannot be used.
        """
        with self._pushing:
            self._lock.check()
            changed = {
                name: sig for name, sig in self._now().items() if self._there.get(name) != sig
            }
            # A change before the config that it is of, and the config first in a new place: without it whatever
            # else is there would belong to nothing.
            first = [name for name in (CHANGES, CONFIG) if name in changed]
            self._send(first[:1]), self._send(first[1:])
            self._send([name for name in changed if name not in first])
            self._there |= changed

    def _pull(self) -> None:
        store = gcs.filesystem()
        with gcs.asking(self._address):
            names = [p.name for p in self._address.iterdir()]
            inner = [self._address / _SAMPLES] if _SAMPLES in names else []
            found = [info for d in [self._address, *inner] for info in _listed(store, d)]
            root = os.fspath(self._address).removeprefix(gcs.PREFIX) + "/"
            wanted = [
                info["name"]
                for info in found
                if info["type"] == "file" and info["name"] != root + LOCK
            ]
            here = [self._files / name.removeprefix(root) for name in wanted]
            for folder in {path.parent for path in here}:
                folder.mkdir(parents=True, exist_ok=True)
            if wanted:
                store.get(wanted, [str(path) for path in here])
        self._there = self._now()

    def _now(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self._files.rglob("*"):
            with contextlib.suppress(
                FileNotFoundError
            ):  # a temporary one that has just been renamed
                if path.is_file() and not is_leftover(path) and path.name != LOCK:
                    stat = path.stat()
                    found[path.relative_to(self._files).as_posix()] = stat.st_size, stat.st_mtime_ns
        return found

    def _send(self, names: list[str]) -> None:
        if names:
            # Read first: what is still being appended to has one length then.
            contents = {
                os.fspath(self._address / name): (self._files / name).read_bytes() for name in names
            }
            with gcs.asking(self._address):
                gcs.filesystem().pipe(contents)


def _listed(store: Any, directory: Path) -> list[dict[str, Any]]:
    try:
        return store.ls(os.fspath(directory), detail=True)
    except FileNotFoundError:
        return []


def _boot() -> str:
    """What tells this machine, since it started, from others of its name; "" where nothing does."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _on_this_machine(holder: dict[str, Any]) -> bool:
    boot = _boot()
    return boot != "" and (holder.get("boot"), holder.get("host")) == (boot, socket.gethostname())


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether a lock's process was one of this machine, and is none any more."""
    pid = holder.get("pid")
    if not _on_this_machine(holder) or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False
