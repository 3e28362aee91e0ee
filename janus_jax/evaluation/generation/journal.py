"""A file of JSON lines that grows with each judged picture, so that a judge that was killed goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.files import read_json_lines


class Journal:
    """Lines of a file: first how they were made, then one a result.

    Args:
      path: made if need be. A last line that a kill cut short is taken away.
      header: what all lines depend on, such as the judge; JSON-ready. A file with another one is refused.
      key: the fields that say what a line is about.

    Raises:
      UserError: the file was made otherwise.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], key: tuple[str, ...]):
        self._path, self._key = Path(path), key
        self.lines: list[dict[str, Any]] = []
        if not self._begun(dict(header)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"header": dict(header)}) + "\n", encoding="utf-8")
        else:
            # First, as a last line can be whole but for its end.
            _cut_last_line(self._path)
            self.lines = read_json_lines(self._path, lambda value: isinstance(value, dict))[1:]
        self._have = {self._of(line) for line in self.lines}

    def _begun(self, header: dict[str, Any]) -> bool:
        """Whether the file has its first line. Raises UserError if that is another one."""
        if not untrusted.is_file(self._path):
            return False
        with self._path.open("rb") as file:
            line = file.readline(untrusted.TEXT_BYTES)
        if not line.endswith(b"\n"):  # a kill cut it short, or it is no file of lines
            if json.dumps({"header": header}).encode().startswith(line):
                return False
            made_by: Any = "something else"
        else:
            try:
                made_by = json.loads(line)["header"]
            except (*untrusted.SENSELESS, RecursionError):
                made_by = "something else"
        if made_by != header:
            raise UserError(
                f"{untrusted.printable(self._path, 200)} was made by {untrusted.shown(made_by, 200)}, not by "
                f"{untrusted.shown(header, 200)}: choose another file"
            )
        return True

    def has(self, **key: Any) -> bool:
        """Whether there is a line about this."""
        return tuple(key[name] for name in self._key) in self._have

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds a line; it is with the operating system when this returns, so a kill does not lose it."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")
        self.lines.append(dict(line))
        self._have.add(self._of(line))

    def _of(self, line: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(line.get(name) for name in self._key)


def read_header(path: str | Path) -> dict[str, Any]:
    """How the lines of a journal were made, such as {"detector": name}; {} for a file that is none.

    Raises:
      UserError: it cannot be read.
    """
    lines = read_json_lines(Path(path), lambda value: isinstance(value, dict))
    header = lines[0].get("header") if lines else None
    return header if isinstance(header, dict) else {}


def _cut_last_line(path: Path) -> None:
    """Takes away what stands behind the last line end."""
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())
