"""Where prepared data goes: one preparation at a time, of the same data with the same settings."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.files import read_json, remove_leftovers, write_json
from janus_jax.places import check_directory, check_local, make_directory

STATE = "state.json"
VERSION = 1
_NAMES = r"(?:state|prepared)\.json|rejected\.jsonl|manifest\.yaml"
_ABSENT = "<absent>"


def check(out: Path, manifest: str) -> None:
    """Raises UserError if the directory of all sources cannot be made or written; makes nothing."""
    check_local(out, "--out")
    check_directory(out, "--out", [manifest])


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Makes the directory of all sources, and holds it for this process until the end, however that comes.

    Raises:
      UserError: another process holds it.
    """
    make_directory(out)
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--out {out} is in use by another preparation: wait for it, or choose another place"
            ) from error
        except OSError:
            pass  # a file system without locks: two at a time would only do the work twice
        remove_leftovers(out, _NAMES)
        yield


def begin(directory: Path, settings: Mapping[str, Any]) -> None:
    """Makes the directory of a source, or checks that what is there was begun with the same settings.

    Args:
      directory: of the source.
      settings: JSON-ready, all that a byte of it depends on.

    Raises:
      UserError: it holds something else, or was begun with other settings.
    """
    state = directory / STATE
    remove_leftovers(directory, _NAMES)
    if not untrusted.is_file(state):
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(
                f"{directory} holds something else than prepared data: choose another --out"
            )
        directory.mkdir(exist_ok=True)
        write_json(state, {"version": VERSION, "settings": settings})
        return
    found = read_json(state, dict, f"remove {directory}")
    before, now = (_flat({"": value}) for value in (found.get("settings", {}), settings))
    if found.get("version") != VERSION:
        raise UserError(f"{directory} is of another version of this program: choose another --out")
    for name in sorted({*before, *now}):
        old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if old != new:
            raise UserError(
                f"{directory} is another preparation: {name.strip('.')} was {untrusted.shown(old)}, now "
                f"{untrusted.shown(new)}; choose another --out, or remove this directory"
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    found = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}")
    return found
