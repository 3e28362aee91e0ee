"""Joining the processes of one job."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from janus_jax.errors import RunError, UserError, one_line


def is_multiprocess(env: Mapping[str, str]) -> bool:
    """Whether environment variables say that this process is one of several.

    Recognised: `JAX_COORDINATOR_ADDRESS` (set by hand, with `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`), `srun` and `mpirun` with more than one task, TPU pods and TPU multislice.
    """
    if env.get("JAX_COORDINATOR_ADDRESS") or env.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return True
    # Of the step, not of the job: a script that sbatch starts without srun is alone.
    if _integer(env, "SLURM_STEP_NUM_TASKS", 1) > 1 or _integer(env, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return True
    return any(
        "," in env.get(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    )


def initialize(env: Mapping[str, str] | None = None) -> bool:
    """Calls `jax.distributed.initialize` if this is a job of several processes; else does nothing.

    Must run before anything touches a device. On Slurm, Open MPI and TPUs JAX finds the other
    processes itself; elsewhere set the three `JAX_` variables of `is_multiprocess`.

    Returns:
      Whether the processes are joined.

    Raises:
      UserError: a variable is not an integer, or the other processes were not reached.
    """
    env = os.environ if env is None else env
    if jax.distributed.is_initialized():
        return True
    if not is_multiprocess(env):
        return False
    count = _integer(env, "JAX_NUM_PROCESSES", None)
    index = _integer(env, "JAX_PROCESS_ID", None)
    try:
        jax.distributed.initialize(
            coordinator_address=env.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=count,
            process_id=index,
        )
    except ValueError as error:
        raise UserError(
            f"cannot join a job of several processes: {error} Set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    return True


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to people."""
    return jax.process_index() == 0


def first_only(work: Callable[[], Any]) -> Any:
    """Runs `work` in the first process; every process gets its result, or its error.

    All processes must call it, at the same place.

    Args:
      work: returns something JSON-ready.

    Raises:
      UserError, RunError: `work` did; or anything else in the first process, of which the others say so
        in a RunError.
    """
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    error = None
    if is_first():
        try:
            answer = {"value": work()}
        except Exception as caught:
            error = caught
            kind = "user" if isinstance(caught, UserError) else "run"
            answer = {kind: one_line(caught) or type(caught).__name__}
    answer = _broadcast(answer)
    if error is not None:
        raise error
    if "user" in answer:
        raise UserError(answer["user"])
    if "run" in answer:
        raise RunError(f"process 0 failed: {answer['run']}")
    return answer["value"]


def stop_together() -> Callable[[], signal.Signals | None]:
    """What a loop of several processes asks after every step: whether all of them stop after this one.

    JAX takes SIGTERM in whichever process it comes, and agrees on a step that none has passed. All
    processes must ask equally often.
    """
    asked, count = None, 0

    def stop() -> signal.Signals | None:
        nonlocal asked, count
        count += 1
        if asked is None and multihost_utils.reached_preemption_sync_point(count):
            asked = signal.SIGTERM
        return asked

    return stop


def _broadcast(value: Any) -> Any:
    """JSON-ready `value` of the first process, in all of them."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    buffer = np.zeros(size, np.uint8)
    if is_first():
        buffer[:] = data
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())


def _integer(env: Mapping[str, str], name: str, default: int | None) -> int | None:
    value = env.get(name)
    if not value:
        return default
    try:
        return int(value)
    except ValueError:
        raise UserError(f"environment variable {name} must be an integer, not {value!r}") from None
