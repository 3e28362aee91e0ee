"""The checkpoints of one training stage.

    DIRECTORY/STEP/params   parameters, loadable without the rest
    DIRECTORY/STEP/state    optimizer state, counters, keys
    DIRECTORY/STEP/data     position of the data iterator, one file a process
    DIRECTORY/STEP/metrics  JSON, for people
    DIRECTORY/STEP/checksums.json
    DIRECTORY/STEP.damaged  a step that was not as it had been written, and was passed over

A step is written under a temporary name and renamed when all of it is on disk, so a process killed
at any moment leaves the earlier steps whole; the next run that opens the stage removes leftovers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from janus_jax.checkpoints import checksums, storage
from janus_jax.errors import UserError
from janus_jax.files import DamagedError, access_error, read_json, unreadable

_ITEMS = ("params", "state", "data", "metrics")
_FINE, _DAMAGED, _UNREADABLE = range(3)


class StageCheckpoints:
    """Saves and restores the checkpoints of one stage; only the training process may open it.

    Usable as a context manager.
    """

    def __init__(self, directory: str | Path, keep: int = 2, verify: bool = True):
        """Opens, and makes, a stage's directory, and removes what a killed run left half written.

        Args:
          directory: `RUN/checkpoints/STAGE`.
          keep: how many of the newest steps to keep.
          verify: compare what is read with the checksums that were written with it.
        """
        self.directory = Path(os.path.abspath(directory))
        self._verify = verify
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        import grain  # here, since reading a model, as sampling does, needs no data pipeline

        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
            temporary_path_class=checksums.SummedPath,
            lightweight_initialize=True,  # or damaged metrics would be an error here
        )
        handlers = {
            "params": storage.tree_handler(),
            "state": storage.tree_handler(),
            "data": grain.checkpoint.CheckpointHandler(),
            "metrics": ocp.JsonCheckpointHandler(),
        }
        with storage.writing(self.directory, "nothing was written"):
            return ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def save(
        self,
        step: int,
        params: Any,
        train_state: Any,
        data: Any,
        metrics: Mapping[str, Any] | None = None,
    ) -> bool:
        """Writes one checkpoint and returns when it is complete; then drops the oldest ones.

        Args:
          step: not negative. A step that exists is left as it is.
          params: tree of arrays.
          train_state: tree of arrays, such as the optimizer's state.
          data: a Grain iterator, anything with `get_state()` and `set_state(state)` of JSON-ready
            state, or a JSON-ready dict.
          metrics: JSON-ready numbers.

        Returns:
          Whether it was written.

        Raises:
          UserError: the disk is full.
        """
        import grain

        if step in self._manager.all_steps():
            return False
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(_arrays(params)),
            state=ocp.args.PyTreeSave(_arrays(train_state)),
            data=grain.checkpoint.CheckpointSave(_iterator(data)),
            metrics=ocp.args.JsonSave(_jsonable(metrics or {})),
        )
        with storage.writing(self.directory, "earlier checkpoints are intact", params, train_state):
            return self._manager.save(step, args=items, force=True)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def restore(
        self, step: int, abstract_params: Any, abstract_state: Any, data: Any
    ) -> tuple[Any, Any]:
        """Reads one checkpoint.

        Args:
          step: a complete step.
          abstract_params: tree of `jax.ShapeDtypeStruct` (or arrays): the result has its structure,
            dtypes and shardings.
          abstract_state: the same for the training state.
          data: like in `save`; it is put where the checkpoint's was. None leaves it unread. One with a method
            `set_states` is given what every process saved, in their order, and may be of a job with
            another number of them.

        Returns:
          (params, state).

        Raises:
          UserError: no such step, it is damaged, it is of another architecture or optimizer, or of
            a job with another number of processes.
        """
        self._check(step)
        return self._restore(step, abstract_params, abstract_state, data)

    def restore_newest(
        self, abstract_params: Any, abstract_state: Any, data: Any
    ) -> tuple[int, Any, Any] | None:
        """Reads the newest step that is whole; damaged ones are moved aside, with a line on stderr.

        Args:
          abstract_params, abstract_state, data: like in `restore`.

        Returns:
          (step, params, state), or None if there is no step at all.

        Raises:
          UserError: there are steps, but none is whole; the newest cannot be read, and may be whole; or
            as `restore` does.
        """
        read = lambda step: self._restore(step, abstract_params, abstract_state, data)
        found = self._newest_whole(read)
        return found and (found[0], *found[1])

    def restore_params(self, step: int) -> dict[str, Any]:
        """The parameters alone, as nested dicts of host numpy arrays.

        Raises:
          UserError: no such step, or it is damaged.
        """
        self._check(step, "params")
        return self._read_params(step)

    def restore_newest_params(self) -> tuple[int, dict[str, Any]] | None:
        """(step, parameters) of the newest step of which they are whole, like `restore_newest`."""
        return self._newest_whole(self._read_params, "params")

    def metrics(self, step: int) -> dict[str, Any]:
        """The metrics saved with a step."""
        return read_json(self._path(step) / "metrics" / "metrics")

    def close(self) -> None:
        """Waits for what is in flight."""
        with storage.quiet():
            self._manager.close()

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, step: int) -> Path:
        if step not in self._manager.all_steps():
            steps = ", ".join(map(str, sorted(self._manager.all_steps()))) or "none"
            raise UserError(f"no checkpoint of step {step} in {self.directory}; it has {steps}")
        return self.directory / str(step)

    def _read_params(self, step: int) -> dict[str, Any]:
        path = self._path(step) / "params"
        return storage.read_tree(path, storage.read_shapes(path))

    def _restore(
        self, step: int, abstract_params: Any, abstract_state: Any, data: Any
    ) -> tuple[Any, Any]:
        import grain

        path = self._path(step)
        for item, abstract in (("params", abstract_params), ("state", abstract_state)):
            self._check_fit(path / item, abstract)
        items = {
            "params": _restore_like(abstract_params),
            "state": _restore_like(abstract_state),
        }
        takes_all = hasattr(data, "set_states")
        with storage.reading(path / "data"):
            states = None if data is None else _positions(path / "data", takes_all)
        if data is not None and not takes_all:
            items["data"] = grain.checkpoint.CheckpointRestore(_iterator(data))
        with storage.reading(path):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            if takes_all:
                data.set_states(states)
        return restored["params"], restored["state"]

    def _check(self, step: int, below: str = "") -> None:
        """Raises DamagedError, in every process, if a step is not what was written.

        Another UserError if it cannot be read, and may be whole.
        """
        path, found = self._path(step), None
        if jax.process_index() == 0:
            try:
                if reason := self._damage(step, below):
                    found = DamagedError(f"{path} is damaged: {reason}")
            except UserError as error:
                found = error
            except OSError as error:
                code = access_error(error)
                if code is None:
                    raise
                found = unreadable(path, code)
        verdict = _agreed(_FINE if found is None else _verdict(found))
        if found is None and verdict != _FINE:
            found = (
                DamagedError(f"{path} is damaged: process 0 found it so")
                if verdict == _DAMAGED
                else UserError(f"process 0 cannot read {path}")
            )
        if found is not None:
            raise found

    def _damage(self, step: int, below: str) -> str | None:
        path = self._path(step)
        items = [below] if below else _ITEMS
        missing = [item for item in items if not (path / item).is_dir()]
        if missing:
            return f"{missing[0]}/ is missing" if any(path.glob("*")) else "it is empty"
        return checksums.damage(path, below, step) if self._verify else None

    def _newest_whole(self, read: Callable[[int], Any], below: str = "") -> tuple[int, Any] | None:
        """(step, read(step)) of the newest step that is whole, or None without any step."""
        damaged: dict[int, DamagedError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                self._check(step, below)
            except DamagedError as error:
                damaged[step] = error
                continue
            try:
                result = read(step)
            except DamagedError as error:
                # Files that are as they were written are not to blame. Other processes have read on.
                if checksums.intact(self._path(step)) or jax.process_count() > 1:
                    raise
                damaged[step] = error
                continue
            self._set_aside(damaged, step)
            return step, result
        if not damaged:
            return None
        reasons = "; ".join(str(error) for error in damaged.values())
        raise DamagedError(
            f"no whole checkpoint is left in {self.directory} ({reasons}); to train the stage from "
            "its start, move that directory away"
        )

    def _set_aside(self, damaged: Mapping[int, DamagedError], used: int) -> None:
        """Renames damaged steps, so that no later run meets them and people still can."""
        for step, error in damaged.items():
            new = self.directory / f"{step}.damaged"
            number = 2
            while new.exists():
                new, number = self.directory / f"{step}.damaged{number}", number + 1
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(new)
                print(
                    f"warning: {error}; it is now {new.name}, and step {used} is used instead",
                    file=sys.stderr,
                )
        if damaged:
            _agreed(_FINE)  # the others wait for the renaming
            self._manager.close()  # its `reload` would read the metrics of every step
            self._manager = self._open()

    def _check_fit(self, path: Path, abstract: Any) -> None:
        """Orbax would say this in many lines."""
        found, wanted = storage.flatten(storage.read_shapes(path)), storage.flatten(abstract)
        found = {name: leaf for name, leaf in found.items() if hasattr(leaf, "shape")}
        wanted = {name: leaf for name, leaf in wanted.items() if hasattr(leaf, "shape")}
        if difference := storage.first_difference(found, wanted):
            raise UserError(
                f"{path} belongs to another architecture or optimizer: {difference}; "
                "use the config it was made with, or a new working directory"
            )


def _verdict(error: UserError) -> int:
    return _DAMAGED if isinstance(error, DamagedError) else _UNREADABLE


def _agreed(verdict: int) -> int:
    """What process 0 says, in every process."""
    if jax.process_count() == 1:
        return verdict
    return int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))


def _positions(directory: Path, any_count: bool) -> list[dict[str, Any]]:
    """The positions in the data of all processes that saved, of which an iterator would believe anything.

    Args:
      directory: of a checkpoint's data.
      any_count: whether another number of processes than this job's may have saved.
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
    states = [read_json(directory / name) for name in names]
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


class _JsonIterator:
    """What Grain's checkpoint handler asks of an iterator, for anything else with a position."""

    def __init__(self, data: Any):
        self._data = data

    def get_state(self) -> bytes:
        state = self._data if isinstance(self._data, dict) else self._data.get_state()
        return json.dumps(_jsonable(state)).encode()

    def set_state(self, state: bytes) -> None:
        value = json.loads(state)
        if isinstance(self._data, dict):
            self._data.clear()
            self._data.update(value)
        else:
            self._data.set_state(value)

    def start_prefetch(self) -> None:
        """Part of the interface; nothing to do."""


def _iterator(data: Any) -> Any:
    import grain

    return data if isinstance(data, grain.DatasetIterator) else _JsonIterator(data)


def _jsonable(value: Any) -> Any:
    """Numpy and jax scalars as Python numbers, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    return value


def _arrays(tree: Any) -> Any:
    """Numpy scalars as arrays: Orbax takes no others."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, np.generic) else x, tree)


def _restore_like(tree: Any) -> ocp.args.PyTreeRestore:
    """Asks for the structure, dtypes and shardings of a tree of arrays or of their shapes."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def one(leaf):
        if not hasattr(leaf, "shape"):
            return leaf
        sharding = getattr(leaf, "sharding", None) or device
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    like = jax.tree.map(one, tree)
    args = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(item=like, restore_args=args)
