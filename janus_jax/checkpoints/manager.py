"""The checkpoints of one training stage.

    DIRECTORY/STEP/params   parameters, loadable without the rest
    DIRECTORY/STEP/state    optimizer state, counters, keys
    DIRECTORY/STEP/data     position of the data iterator, one file a process
    DIRECTORY/STEP/metrics  JSON, for people

A step is written under a temporary name and renamed when all of it is on disk, so a process killed
at any moment leaves the earlier steps whole; the next run that opens the stage removes leftovers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from janus_jax.checkpoints import storage
from janus_jax.errors import UserError


class StageCheckpoints:
    """Saves and restores the checkpoints of one stage; only the training process may open it.

    Usable as a context manager.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        """Opens, and makes, a stage's directory, and removes what a killed run left half written.

        Args:
          directory: `RUN/checkpoints/STAGE`.
          keep: how many of the newest steps to keep.
        """
        self.directory = Path(os.path.abspath(directory))
        import grain  # here, since reading a model, as sampling does, needs no data pipeline

        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
        handlers = {
            "params": storage.tree_handler(),
            "state": storage.tree_handler(),
            "data": grain.checkpoint.CheckpointHandler(),
            "metrics": ocp.JsonCheckpointHandler(),
        }
        with storage.writing(self.directory, "nothing was written"):
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )

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
            metrics=ocp.args.JsonSave(_plain(metrics or {})),
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
          data: like in `save`; it is put where the checkpoint's was. None leaves it unread.

        Returns:
          (params, state).

        Raises:
          UserError: no such step, it is damaged, it is of another architecture or optimizer, or of
            a job with another number of processes.
        """
        import grain

        path = self._path(step)
        for item, abstract in (("params", abstract_params), ("state", abstract_state)):
            self._check_fit(path / item, abstract)
        items = {
            "params": _restore_like(abstract_params),
            "state": _restore_like(abstract_state),
        }
        if data is not None:
            name = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
            if not (path / "data" / name).is_file():
                raise UserError(
                    f"{path} was saved by a job with another number of processes than "
                    f"{jax.process_count()}; resume it with the same number"
                )
            items["data"] = grain.checkpoint.CheckpointRestore(_iterator(data))
        with storage.reading(path):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return restored["params"], restored["state"]

    def restore_params(self, step: int) -> dict[str, Any]:
        """The parameters alone, as nested dicts of host numpy arrays.

        Raises:
          UserError: no such step, or it is damaged.
        """
        path = self._path(step) / "params"
        return storage.read_tree(path, storage.read_shapes(path))

    def metrics(self, step: int) -> dict[str, Any]:
        """The metrics saved with a step."""
        return storage.read_json(self._path(step) / "metrics" / "metrics")

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


class _JsonIterator:
    """What Grain's checkpoint handler asks of an iterator, for anything else with a position."""

    def __init__(self, data: Any):
        self._data = data

    def get_state(self) -> bytes:
        state = self._data if isinstance(self._data, dict) else self._data.get_state()
        return json.dumps(_plain(state)).encode()

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


def _plain(value: Any) -> Any:
    """Numpy and jax scalars as Python numbers, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
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
