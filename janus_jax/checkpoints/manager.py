"""The checkpoints of one training stage.

    DIRECTORY/STEP/params   parameters, loadable without the rest
    DIRECTORY/STEP/state    optimizer state, counters, keys
    DIRECTORY/STEP/data     position of the data iterator, one file a process
    DIRECTORY/STEP/metrics  JSON, for people
    DIRECTORY/STEP/checksums.json
    DIRECTORY/STEP.damaged  a step that was not as it had been written, and was passed over

A step is written under a temporary name and renamed when all of it is on disk, so a process killed
at any moment leaves the earlier steps whole; the next run that opens the stage removes leftovers.
In a bucket (gs://) nothing can be renamed: the object commit_success.txt, written last, marks a step.

Files are written in the background. What is written is a copy on the host: on an accelerator Orbax makes it
before `save` returns; on a CPU it holds numpy views of the arrays, and JAX does not donate a buffer that has one.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from janus_jax import gcs
from janus_jax.checkpoints import checksums, position, storage
from janus_jax.checkpoints.retention import Keep, Policy
from janus_jax.errors import UserError
from janus_jax.files import DamagedError, access_error, read_json, unreadable

_ITEMS = ("params", "state", "data", "metrics")
INTACT = "earlier checkpoints are intact"
SAVE_TIMEOUT = 3600  # seconds that processes wait for each other at the end of a save
_FINE, _DAMAGED, _UNREADABLE = range(3)


class StageCheckpoints:
    """Saves and restores the checkpoints of one stage; only the training process may open it.

    Usable as a context manager.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int | Keep = 2,
        verify: bool = True,
        before_commit: Callable[[], None] | None = None,
    ):
        """Opens, and makes, a stage's directory, and removes what a killed run left half written.

        Args:
          directory: `RUN/checkpoints/STAGE`.
          keep: which steps to keep; a number: so many of the newest.
          verify: compare what is read with the checksums that were written with it.
          before_commit: in a bucket, called in the first process once a step lacks nothing but its mark; in the
            background, and what it raises fails the save.
        """
        self.directory = gcs.absolute(directory)
        self._verify, self._before_commit = verify, before_commit
        self._keep = keep if isinstance(keep, Keep) else Keep(keep)
        self._saving: contextlib.ExitStack | None = None  # until a save is complete
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        self._policy, self._lost = Policy(self._keep), threading.Event()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                timeout_secs=SAVE_TIMEOUT, barrier_sync_fn=_barrier(self._lost)
            ),
            temporary_path_class=checksums.temporary_path(self.directory, self._before_commit),
            lightweight_initialize=True,  # or damaged metrics would be an error here
        )
        each = ocp.options.MultiprocessingOptions(primary_host=None)
        handlers = {
            "params": storage.tree_handler(),
            "state": storage.tree_handler(),
            "data": ocp.JsonCheckpointHandler(position.file_name(), multiprocessing_options=each),
            "metrics": ocp.JsonCheckpointHandler(),
        }
        with storage.writing(self.directory, "nothing was written"), self._asking():
            manager = _Manager(self.directory, options=options, item_handlers=handlers)
        if self._keep.best:
            self._policy.metrics = {step: self._saved_metrics(step) for step in manager.all_steps()}
        return manager

    def save(
        self,
        step: int,
        params: Any,
        train_state: Any,
        data: Any,
        metrics: Mapping[str, Any] | None = None,
        wait: bool = True,
    ) -> bool:
        """Writes one checkpoint, after the one before it is complete; then drops those that are not kept.

        Args:
          step: not negative. A step that exists is left as it is.
          params: tree of arrays.
          train_state: tree of arrays, such as the optimizer's state.
          data: an iterator with `get_state()` and `set_state(state)` of JSON-ready state, such as Grain's, or a
            JSON-ready dict.
          metrics: JSON-ready numbers; what `Keep.best_by` names is among them.
          wait: return when it is complete. Else as soon as the arrays are copied to the host: they may be donated
            or changed from then on, and `poll`, `wait`, the next `save` or `close` raises what goes wrong.

        Returns:
          Whether it was written, or is being written.

        Raises:
          UserError: the disk is full.
        """
        self.wait()
        if step in self._manager.all_steps():
            return False
        metrics = position.jsonable(metrics or {})
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(_arrays(params)),
            state=ocp.args.PyTreeSave(_arrays(train_state)),
            data=ocp.args.JsonSave(position.state_of(data)),
            metrics=ocp.args.JsonSave(metrics),
        )
        storage.check_room(self.directory, INTACT, params, train_state)
        self._policy.metrics[step] = metrics
        # Orbax's threads are to say nothing, either, for as long as they write.
        with contextlib.ExitStack() as stack:
            self._silence = stack.enter_context(storage.quiet())
            with storage.full_disk(self.directory, INTACT, self._silence), self._asking():
                self._manager.save(step, args=items, force=True)
            self._saving = stack.pop_all()
        if wait:
            self.wait()
        return True

    def poll(self) -> None:
        """Raises what has gone wrong with the save in flight, if anything; waits for nothing."""
        if self._saving is None:
            return
        if self._lost.is_set() or not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when no save is in flight.

        Raises:
          UserError: the disk is full; the checkpoint was not written.
        """
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        with saving, storage.full_disk(self.directory, INTACT, self._silence), self._asking():
            self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        self.wait()
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
        """Waits for what is in flight.

        Raises:
          UserError: like `wait`.
        """
        try:
            self.wait()
        finally:
            with storage.quiet(), self._asking():
                self._manager.close()

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _asking(self) -> contextlib.AbstractContextManager[None]:
        """Around what writes: in a bucket, its errors in one line."""
        # On a disk there is to be no frame that keeps a failed task alive (`storage.full_disk`).
        here = not gcs.is_gcs(self.directory)
        return contextlib.nullcontext() if here else gcs.asking(self.directory)

    def _saved_metrics(self, step: int) -> dict[str, Any]:
        """Metrics of a step, or nothing: damaged ones are no reason to stop."""
        with contextlib.suppress(UserError, OSError):
            return read_json(self.directory / str(step) / "metrics" / "metrics", dict)
        return {}

    def _path(self, step: int) -> Path:
        self.wait()
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
        path = self._path(step)
        for item, abstract in (("params", abstract_params), ("state", abstract_state)):
            self._check_fit(path / item, abstract)
        items = {
            "params": _restore_like(abstract_params),
            "state": _restore_like(abstract_state),
        }
        takes_all = hasattr(data, "set_states")
        with storage.reading(path / "data"):
            states = None if data is None else position.read(path / "data", takes_all)
        with storage.reading(path):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        if states is not None:
            position.move(data, states)
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
        self.wait()
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


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask JAX whether to stop.

    The training loop does (`parallel.stop_together`), with a count of its own; a question about another number,
    at the wrong moment, would put the step at which all stop out of reach.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _barrier(lost: threading.Event) -> Callable[..., None]:
    """What Orbax's threads wait for each other with.

    In a process whose save has failed they would wait in vain (Orbax does so on its way out, before anybody hears
    of the error): the others wait for files that never come. Here the error goes on, and `lost` says so.
    """
    wait = ocp.multihost.get_barrier_sync_fn()

    def barrier(**arguments: Any) -> None:
        error = sys.exception()
        if error is not None and threading.current_thread() is not threading.main_thread():
            lost.set()
            raise error
        wait(**arguments)

    return barrier


def _verdict(error: UserError) -> int:
    return _DAMAGED if isinstance(error, DamagedError) else _UNREADABLE


def _agreed(verdict: int) -> int:
    """What process 0 says, in every process."""
    if jax.process_count() == 1:
        return verdict
    return int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))


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
