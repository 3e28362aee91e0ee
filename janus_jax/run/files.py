"""The small JSON files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from janus_jax import checkpoints


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by rename, so that a reader never sees half of it."""
    checkpoints.write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """Parses a JSON file that holds one object.

    Args:
      path: of the file.
      advice: what a person can do about a damaged one.

    Raises:
      UserError: it does not.
    """
    advice = advice or (
        f"put it back from a copy, or begin in another --workdir with --config.init_from={path.parent}"
    )
    return checkpoints.read_json(path, dict, advice)
