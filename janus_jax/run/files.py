"""The small JSON files of a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from janus_jax import files

# What is written to a run directory and its samples/.
_FILES = (
    r"(config|stages|janus|tokenizer|checksums|scores|questions)\.json|metrics\.jsonl|report\.md"
    r"|report_(losses|held_out|drawn_.+)\.png"
)
_SAMPLES = r".+_([0-9]+(_answers)?|true)\.(json|png)"


def remove_leftovers(run_dir: Path) -> None:
    """Removes what killed runs left half written."""
    files.remove_leftovers(run_dir, _FILES)
    files.remove_leftovers(run_dir / "samples", _SAMPLES)


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
    return files.read_json(path, dict, advice)
