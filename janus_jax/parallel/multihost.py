"""Joining the processes of one job."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from janus_jax.errors import UserError


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


def _integer(env: Mapping[str, str], name: str, default: int | None) -> int | None:
    value = env.get(name)
    if not value:
        return default
    try:
        return int(value)
    except ValueError:
        raise UserError(f"environment variable {name} must be an integer, not {value!r}") from None
