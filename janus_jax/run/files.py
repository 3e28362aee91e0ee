"""The small JSON files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from janus_jax import checkpoints

# What is written to a run directory and its samples/.
_FILES = (
    r"(config|stages|janus|tokenizer|checksums|scores|questions)\.json|metrics\.jsonl|report\.md"
    r"|report_losses\.png"
)
_SAMPLES = r".+_[0-9]+\.(json|png)"


def remove_leftovers(run_dir: Path) -> None:
    """Removes what killed runs left half written."""
    checkpoints.remove_leftovers(run_dir, _FILES)
    checkpoints.remove_leftovers(run_dir / "samples", _SAMPLES)


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
