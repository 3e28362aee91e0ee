"""scores.json: what each stage of a run scored, how long it took, what memory it needed."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from janus_jax.errors import UserError
from janus_jax.files import write_json
from janus_jax.parallel import is_first
from janus_jax.run.files import read_json
from janus_jax.training.metrics import is_number
from janus_jax.untrusted import is_file, printable

# Of one stage's entry: what its training leaves, and what its scoring does beside tables.
_OF_TRAINING = ("train_seconds", "peak_memory_gib")
_NUMBERS = (*_OF_TRAINING, "scoring_seconds", "cfg_weight", "temperature")
_DEPTH = 3  # a group of tables: table -> row -> column


class ScoreStore:
    """The scores of a run directory. Every process may read; only the first one writes.

    Args:
      run_dir: where scores.json is, or will be.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / "scores.json"

    def read(self) -> dict[str, Any]:
        """Stage -> its entry; {} if there is no file.

        Raises:
          UserError: it cannot be read, or is damaged.
        """
        advice = "move it away, and stages are scored again"
        if not is_file(self._path):
            return {}
        scores = read_json(self._path, advice)
        if wrong := sound_scores(scores)[1]:
            raise UserError(
                f"{self._path} is damaged, {printable(wrong[0])} in it makes no sense: {advice}"
            )
        return scores

    def write(self, scores: dict[str, Any]) -> None:
        if is_first():
            write_json(self._path, scores)

    def record_time(self, stage: str, seconds: float) -> None:
        """Adds a stage's training time, and the process's peak memory."""
        if not is_first():
            return
        scores = self.read()
        entry = scores.setdefault(stage, {})
        entry["train_seconds"] = entry.get("train_seconds", 0.0) + seconds
        entry["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.write(scores)

    def forget(self, stages: list[str]) -> None:
        """Drops the scores of stages, so that they are scored again; not the times of their training."""
        scores = self.read()
        if any(is_scored(scores.get(name, {})) for name in stages):
            for name in stages:
                entry = scores.get(name, {})
                scores[name] = {k: v for k, v in entry.items() if k in _OF_TRAINING}
            self.write(scores)


def is_scored(entry: dict[str, Any]) -> bool:
    """Whether a stage's entry holds more than what its training left."""
    return bool(entry.keys() - set(_OF_TRAINING))


def sound_scores(scores: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What in scores.json has the form that it is written in.

    An entry holds numbers, tables (row -> column -> number) and groups of tables.

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
    if field == "guidance":
        return isinstance(value, dict) and all(
            _is_float(weight) and _depths(table) <= {2} for weight, table in value.items()
        )
    # A table, a group of tables, or a number of another version; not a mixture of them.
    return _depths(value) in ({0}, {2}, {3}, set())


def _depths(value: Any, depth: int = 0) -> set[int]:
    """How deep the numbers in nested dicts lie; {-1} where there is anything else.

    An empty dict is a table without rows, or a row without columns.
    """
    if value is None or is_number(value):
        return {depth}
    if not isinstance(value, dict) or depth == _DEPTH:
        return {-1}
    return set().union(*(_depths(v, depth + 1) for v in value.values()))


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
