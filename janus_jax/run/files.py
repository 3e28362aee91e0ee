"""The small JSON files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from janus_jax import checkpoints
from janus_jax.training.metrics import is_number

# Of one stage in scores.json. A table is kind -> field -> number.
_NUMBERS = "train_seconds scoring_seconds peak_memory_gib cfg_weight temperature".split()
_TABLES = "mini_geneval mini_geneval_held_out questions questions_held_out".split()


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


def sound_scores(scores: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What in scores.json has the form that it is written in; fields of other versions are left alone.

    Returns:
      (stage -> its entry without what has another form, the names of that: "STAGE" or "STAGE.FIELD").
    """
    sound, wrong = {}, []
    for name, entry in scores.items():
        if not isinstance(entry, dict):
            wrong.append(name)
            continue
        bad = [field for field, value in entry.items() if not _is_sound(field, value)]
        sound[name] = {field: value for field, value in entry.items() if field not in bad}
        wrong += [f"{name}.{field}" for field in bad]
    return sound, wrong


def _is_sound(field: str, value: Any) -> bool:
    if field in _NUMBERS:
        return is_number(value)
    if field in _TABLES:
        return _is_table(value)
    if field == "guidance":
        return isinstance(value, dict) and all(
            _is_float(weight) and _is_table(table) for weight, table in value.items()
        )
    if field == "judge":
        return isinstance(value, dict) and all(map(_is_table, value.values()))
    return True


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(row, dict) and all(cell is None or is_number(cell) for cell in row.values())
        for row in value.values()
    )


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
