"""The small JSON files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from janus_jax import checkpoints
from janus_jax.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by rename, so that a reader never sees half of it."""
    checkpoints.write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Parses a JSON file that holds one object.

    Raises:
      UserError: it does not.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value
    except ValueError as error:
        reason = "it is empty" if not path.stat().st_size else str(error)
        raise UserError(
            f"{path} is damaged ({reason}); put it back from a copy, or begin in another --workdir "
            f"with --config.init_from={path.parent}"
        ) from error
