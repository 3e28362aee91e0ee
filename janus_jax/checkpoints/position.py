"""Where a stage was in its data: one JSON file a process in the item `data` of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax.errors import UserError
from janus_jax.files import DamagedError, read_json


def file_name() -> str:
    """The file of this process, as Grain's own handler names it."""
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"


def state_of(data: Any) -> dict[str, Any]:
    """The position of an iterator with `get_state()`, or a dict that is one: JSON-ready, and a copy."""
    return jsonable(data if isinstance(data, Mapping) else data.get_state())


def move(data: Any, states: Sequence[dict[str, Any]]) -> None:
    """Puts an iterator, or a dict, where the processes that saved were.

    Args:
      data: one with `set_states(states)` is given all, others what this process saved.
      states: from `read`.
    """
    if hasattr(data, "set_states"):
        data.set_states(states)
        return
    state = states[jax.process_index()]
    if isinstance(data, dict):
        data.clear()
        data.update(state)
    else:
        data.set_state(state)


def read(directory: Path, any_count: bool) -> list[dict[str, Any]]:
    """The saved positions of all processes, looked at, as an iterator would believe anything.

    Args:
      directory: the item `data` of a step.
      any_count: whether another number of processes than this job's may have saved.

    Raises:
      UserError: they are damaged, or of a job with another number of processes.
    """
    counts = {path.stem.rpartition("-")[2] for path in directory.glob("process_*-of-*.json")}
    counts = {int(count) for count in counts if count.isdecimal()}
    mine = jax.process_count()
    if not any_count and counts and mine not in counts:
        raise UserError(
            f"{directory.parent} was saved by a job with another number of processes than {mine}; resume "
            "it with the same number"
        )
    count = counts.pop() if any_count and len(counts) == 1 else mine
    names = [f"process_{index}-of-{count}.json" for index in range(count)]
    for name in names:
        if not (directory / name).is_file():
            raise DamagedError(f"{directory.parent} is damaged: data/{name} is missing")
    states = [read_json(directory / name, dict) for name in names]
    for name, state in zip(names, states, strict=True):
        _check_indices(state, f"{directory.parent} is damaged: data/{name}")
    return states


def _check_indices(state: Any, where: str) -> None:
    todo = [state]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("next_index"), int) and value["next_index"] < 0:
                raise DamagedError(f"{where} has a negative index")
            todo += value.values()


def jsonable(value: Any) -> Any:
    """Numpy and jax numbers as Python's, all the way down; containers are new ones."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return value
