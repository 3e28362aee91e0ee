"""`run.json`: what the answers in a directory depend on, so that other answers never get mixed with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.files import read_json, write_json

RUN_FILE = "run.json"
FORMAT = 1
_PIECE = 65536
_SMALL = 2**20


def keep_settings(directory: str | Path, settings: Mapping[str, Any]) -> None:
    """Writes run.json, or checks that an older one says the same.

    Args:
      directory: exists.
      settings: "model" and "benchmarks", each name -> JSON-ready value.

    Raises:
      UserError: the directory has answers of another model, protocol or data, or its run.json is damaged.
    """
    path = Path(directory, RUN_FILE)
    settings = {"format": FORMAT, **settings}
    if not untrusted.is_file(path):
        if untrusted.is_file(Path(directory, "predictions.jsonl")):
            raise UserError(
                f"{untrusted.printable(directory, 200)} has answers and no {RUN_FILE}, so it is not known what "
                "they are of: choose another --out"
            )
        write_json(path, settings)
        return
    found = read_json(path, dict, "choose another --out")
    advice = "choose another --out, or run it again as it was"
    where = untrusted.printable(directory, 200)
    if found.get("format") != FORMAT:
        raise UserError(f"{where}/{RUN_FILE} is not one of this command: choose another --out")
    for part in ("model", "benchmarks"):
        old, new = found.get(part), settings[part]
        if not isinstance(old, dict) or old == new:
            if isinstance(old, dict):
                continue
            raise UserError(f"{where}/{RUN_FILE} is damaged: choose another --out")
        for name in dict.fromkeys([*new, *old]):
            if old.get(name) != new.get(name):
                if files := _changed_files(old.get(name), new.get(name)):
                    raise UserError(f"{files} since {where} got its answers: {advice}")
                raise UserError(
                    f"{where} has answers with another {_what(part, name)} "
                    f"({_brief(old.get(name))}, not {_brief(new.get(name))}): {advice}"
                )


def read_settings(directory: str | Path) -> dict[str, Any]:
    """What `keep_settings` wrote.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    return read_json(Path(directory, RUN_FILE), dict, "it must be a directory of this command")


def fingerprint_of_files(paths: Iterable[str | os.PathLike]) -> str:
    """A short name of what is in files, of directories in all below them, that is made in a moment.

    Of each its name, its length, its first and last 64 KiB; of one below 1 MiB all of it.
    """
    digest = hashlib.sha256()
    for path in paths:
        root = Path(path)
        inside = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for file in inside:
            name = str(file.relative_to(root)) if root.is_dir() else file.name
            digest.update(os.fsencode(name) + b"\0")
            _add_file(digest, file)
    return digest.hexdigest()[:16]


def model_settings(checkpoint: str, origin: Mapping[str, Any], **further: Any) -> dict[str, Any]:
    """What the answers depend on of a model.

    Args:
      checkpoint: as it was given: a directory or a hub id.
      origin: of the loaded model (`Janus.origin`).
      further: such as its dtype and adapter.
    """
    found = {"checkpoint": checkpoint, **further}
    stage, step = origin.get("stage"), origin.get("step")
    if stage is not None and step is not None:
        found |= {"stage": stage, "step": step}
    directory = Path(checkpoint)
    if directory.is_dir():
        own = [directory / name for name in ("janus.json", "tokenizer.json")]
        step_dir = directory / "checkpoints" / str(stage) / str(step)
        places: Sequence[Path] = [*own, step_dir] if step_dir.is_dir() else [directory]
        found["fingerprint"] = fingerprint_of_files(p for p in places if p.exists())
    elif origin:
        found["fingerprint"] = hashlib.sha256(repr(sorted(origin.items())).encode()).hexdigest()[
            :16
        ]
    return found


def _add_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode() + b"\0")
    with open(path, "rb") as file:
        if size <= _SMALL:
            digest.update(file.read())
        else:
            digest.update(file.read(_PIECE))
            file.seek(-_PIECE, os.SEEK_END)
            digest.update(file.read())


def _what(part: str, name: str) -> str:
    return (
        f"model: {name}" if part == "model" else f"set of benchmarks: {untrusted.printable(name)}"
    )


def _changed_files(old: Any, new: Any) -> str:
    """That the files of a benchmark have changed, where nothing else has and they have the same names; else ""."""
    if not isinstance(old, dict) or not isinstance(new, dict) or not new.get("files"):
        return ""
    if {**old, "data": ""} != {**new, "data": ""}:
        return ""
    first, *others = map(untrusted.printable, new["files"])
    named = ", ".join([first, *others])
    return f"one of {named} has changed" if others else f"{first} has changed"


def _brief(value: Any) -> str:
    return "none" if value is None else untrusted.shown(value, 80)
