"""Pictures that a browser fetches, in a directory that is bounded and ends with the process."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import tempfile
import threading
from pathlib import Path

MOST_BYTES = 2**30  # of all files together
_LONGEST_NAME = 40


class PictureFiles:
    """Files of all pages: what was drawn, and what was uploaded.

    Args:
      directory: nothing else is in it, and only this user can read it.
      most: bytes; the oldest files go first.
    """

    def __init__(self, directory: Path, most: int = MOST_BYTES):
        self.directory, self._most = directory.resolve(), most
        self._lock = threading.Lock()

    def save(self, data: bytes, name: str) -> str:
        """Writes a PNG and returns its path, which nobody can guess.

        Args:
          data: of the PNG.
          name: of the file, without ending; see `harmless`.
        """
        folder = self.directory / secrets.token_hex(16)
        folder.mkdir()
        path = folder / f"{name}.png"
        path.write_bytes(data)
        self.trim()
        return str(path)

    def holds(self, path: str) -> bool:
        """Whether a path, with its links followed, is inside of the directory."""
        try:
            return Path(path).resolve().is_relative_to(self.directory)
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
            return False

    def is_there(self, path: str) -> bool:
        """Whether a file of the directory has not been removed."""
        return self.holds(path) and os.path.isfile(path)

    def trim(self) -> None:
        """Removes the oldest files until the others fit."""
        with self._lock:
            found = []
            for parent, _, names in os.walk(self.directory):
                for name in names:
                    path = os.path.join(parent, name)
                    try:
                        about = os.stat(path)
                    except FileNotFoundError:
                        continue
                    found.append((about.st_mtime, about.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._most:
                    return
                Path(path).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # others are in it
                    os.rmdir(os.path.dirname(path))
                total -= size


def harmless(name: str) -> str:
    """A name for a file from any text."""
    words = re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_")
    return words[:_LONGEST_NAME].strip("_") or "picture"


@functools.cache
def _directory() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="janus_page_", ignore_cleanup_errors=True)


def of_process() -> PictureFiles:
    """Those of this process: Gradio has one directory for all its pages."""
    return PictureFiles(Path(_directory().name))
