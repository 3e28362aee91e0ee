"""Where a run keeps what it writes: a directory, or a bucket; and whether every process sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from janus_jax import gcs
from janus_jax.errors import RunError, UserError
from janus_jax.parallel import first_only, is_first, who_lacks
from janus_jax.run.bucket import Mirror
from janus_jax.run.claim import lock, one_line_errors

_PATIENCE = 5.0  # seconds


@dataclasses.dataclass(frozen=True)
class RunPlace:
    """Where a run is.

    Attributes:
      address: as it is called: a directory, or gs://bucket/run; it has the checkpoints.
      files: directory with everything else; of a bucket, a temporary one in which only the first process writes.
      hold: holds it against other runs; for the first process.
      push: sees to it that what is in `files` is at `address`; may be called in every process.
    """

    address: Path
    files: Path
    hold: Callable[[], AbstractContextManager[None]]
    push: Callable[[], None] = lambda: None

    def said(self, text: str) -> str:
        """A text for people, with the address where `files` are named."""
        return text.replace(str(self.files), str(self.address))


@contextlib.contextmanager
def run_place(run_dir: str | Path) -> Iterator[RunPlace]:
    """The place of a run, which need not exist; nothing is written before it is held.

    Raises:
      UserError: there is no such bucket, or it cannot be used.
    """
    if not gcs.is_gcs(run_dir):
        run_dir = Path(run_dir)
        yield RunPlace(run_dir, run_dir, lambda: lock(run_dir))
        return
    gcs.check(run_dir, "--workdir")
    with tempfile.TemporaryDirectory(prefix="janus_jax_run_") as directory:
        address, files = gcs.absolute(run_dir), Path(directory)
        mirror = Mirror(address, files)
        push = mirror.push if is_first() else lambda: None
        place = RunPlace(address, files, mirror.hold, push)
        try:
            yield place
        except (UserError, RunError) as error:
            if (text := place.said(str(error))) != str(error):
                raise type(error)(text) from error
            raise


def check_shared(run_dir: Path) -> None:
    """Looks, in every process of a job, for a file that the first one writes into the locked directory.

    Raises:
      UserError: a process does not see it; without this, the first save would fail.
    """
    if jax.process_count() == 1:
        return
    with contextlib.ExitStack() as stack:

        def put() -> list[str]:
            with one_line_errors(run_dir, "write to"):
                # A name that was never looked up: network disks remember that a file was missing.
                file = stack.enter_context(
                    tempfile.NamedTemporaryFile(dir=run_dir, prefix=".shared-", suffix=".tmp")
                )
            return [Path(file.name).name, f"{run_dir.absolute()} on {socket.gethostname()}"]

        name, there = first_only(put)
        if missing := who_lacks(_appears(run_dir / name)):
            raise UserError(
                f"process {', '.join(map(str, missing))} does not see what process 0 writes to the run "
                f"directory ({there}): give every process the same --workdir, on a disk that all share"
            )


def _appears(path: Path) -> bool:
    """Whether a file is there, or soon is: a network disk may show it late."""
    deadline = time.monotonic() + _PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
