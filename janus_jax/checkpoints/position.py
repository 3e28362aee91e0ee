"""Where a stage was in its data: one JSON file a process in the item `data` of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
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


def move(data: Any, state: dict[str, Any]) -> None:
    """Puts an iterator, or a dict, where `state` says."""
    if isinstance(data, dict):
        data.clear()
        data.update(state)
    else:
        data.set_state(state)


def read(directory: Path) -> dict[str, Any]:
    """The saved position for this process, looked at, as an iterator would believe anything.

    Where a job with another number of processes saved one that knows what it depends on ("settings"), that of
    its first process.

    Args:
      directory: the item `data` of a step.

    Raises:
      UserError: it is damaged, or of a job with another number of processes.
    """
    name = file_name()
    if not (directory / name).is_file():
        name = _of_another_job(directory)
    state = read_json(directory / name, dict)
    todo = [state]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("next_index"), int) and value["next_index"] < 0:
                raise DamagedError(
                    f"{directory.parent} is damaged: data/{name} has a negative index"
                )
            todo += value.values()
    return state


def _of_another_job(directory: Path) -> str:
    others = sorted(directory.glob("process_0-of-*.json"))
    if not others or any(directory.glob(f"process_*-of-{jax.process_count()}.json")):
        raise DamagedError(f"{directory.parent} is damaged: data/{file_name()} is missing")
    state = read_json(directory / others[0].name)
    if not isinstance(state, dict) or "settings" not in state:
        raise UserError(
            f"{directory.parent} was saved by a job with another number of processes than "
            f"{jax.process_count()}; resume it with the same number"
        )
    return others[0].name


def jsonable(value: Any) -> Any:
    """Numpy and jax numbers as Python's, all the way down; containers are new ones."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return value
