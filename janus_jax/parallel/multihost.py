"""Joining the processes of one job."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from janus_jax.errors import RunError, UserError, line_and_code, one_line
from janus_jax.parallel import tpu_hosts

JOIN_TIMEOUT = 120  # seconds
NAME_TIMEOUT = 30  # seconds, for the coordinator's name to be known
GRACE = 2.0  # seconds
# What collectives, barriers and the coordination service say of a process that has gone.
_LOST = re.compile(
    r"Gloo \w+ failed|NCCL|[Cc]onnection (closed|reset) by peer|[Cc]onnection (refused|timed out)|"
    r"(DEADLINE_EXCEEDED|UNAVAILABLE|ABORTED):|coordination (service|agent)|[Bb]arrier timed out"
)
_LOST_OF_JAX = "Gloo", "NCCL", "onnection", "DEADLINE", "UNAVAILABLE", "coordination", "ABORTED"


def is_multiprocess(env: Mapping[str, str]) -> bool:
    """Whether environment variables say that this process is one of several.

    Recognised: `JAX_COORDINATOR_ADDRESS` (set by hand, with `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`), `srun` and `mpirun` with more than one task, TPU pods and TPU multislice, on GKE as on
    Compute Engine, and the pods of an Indexed Job or JobSet on Kubernetes, unless `JAX_NUM_PROCESSES` is 1.
    """
    if env.get("JAX_COORDINATOR_ADDRESS") or env.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return True
    # Of the step, not of the job: a script that sbatch starts without srun is alone.
    if _integer(env, "SLURM_STEP_NUM_TASKS", 1) > 1 or _integer(env, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return True
    if any(name in env for name in tpu_hosts.VARIABLES):
        return tpu_hosts.of_variables(env) > 1
    return _is_indexed_job(env) or tpu_hosts.of_metadata(env) > 1


def _is_indexed_job(env: Mapping[str, str]) -> bool:
    """Whether this is a pod of a Kubernetes Job that numbers its pods. How many there are JAX asks the cluster."""
    in_job = "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env
    return in_job and _integer(env, "JAX_NUM_PROCESSES", 2) > 1


def initialize(env: Mapping[str, str] | None = None) -> bool:
    """Calls `jax.distributed.initialize` if this is a job of several processes; else does nothing.

    Must run before anything touches a device. On Slurm, Open MPI and TPUs JAX finds the other
    processes itself, on Kubernetes with the package `kubernetes`; elsewhere set the three `JAX_` variables of
    `is_multiprocess`. The index of a pod (`JOB_COMPLETION_INDEX`) takes the place of `JAX_PROCESS_ID`. Who
    waits longer than `JANUS_JOIN_TIMEOUT` seconds (120) for the others ends with one line and exit code 2.

    Returns:
      Whether the processes are joined.

    Raises:
      UserError: a variable is missing or impossible.
    """
    env = os.environ if env is None else env
    if jax.distributed.is_initialized():
        return True
    if not is_multiprocess(env):
        if _integer(env, "JAX_NUM_PROCESSES", 1) > 1 or _integer(env, "JAX_PROCESS_ID", 0) > 0:
            raise UserError(
                "JAX_NUM_PROCESSES or JAX_PROCESS_ID is set, but not JAX_COORDINATOR_ADDRESS (host:port "
                "of process 0): each process would train alone"
            )
        return False
    count = _integer(env, "JAX_NUM_PROCESSES", None)
    index = _integer(env, "JAX_PROCESS_ID", None)
    address = env.get("JAX_COORDINATOR_ADDRESS")
    options: dict[str, Any] = {}
    if _is_indexed_job(env):
        index = _integer(env, "JOB_COMPLETION_INDEX", None) if index is None else index
        if address and count:
            options = {"cluster_detection_method": "deactivate"}  # nothing is left to ask
        elif importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "this pod is one of an Indexed Job: set JAX_COORDINATOR_ADDRESS (JOB-0.SERVICE:PORT) and "
                "JAX_NUM_PROCESSES, or pip install kubernetes; JAX_NUM_PROCESSES=1 if each trains alone"
            )
    timeout = _integer(env, "JANUS_JOIN_TIMEOUT", JOIN_TIMEOUT)
    if timeout < 1:
        raise UserError(f"JANUS_JOIN_TIMEOUT must be at least 1 second, not {timeout}")
    if address:
        _check_address(address, min(timeout, NAME_TIMEOUT))
    try:
        with _exit_after(
            timeout, f"the other processes (coordinator: {address or 'found by JAX'})"
        ):
            jax.distributed.initialize(
                coordinator_address=address,
                num_processes=count,
                process_id=index,
                # JAX ends the process by itself, with a page of text, so later than this does.
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=60,
                shutdown_timeout_seconds=60,
                **options,
            )
    except (ValueError, RuntimeError) as error:  # of several lines where Kubernetes refuses
        raise UserError(
            f"cannot join a job of several processes: {one_line(error)} Set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    return True


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around what a process of a joined job does: an error ends it at once, in one line.

    JAX would wait for the others on the way out, while they wait for this one in a computation. Where
    another process has gone, what is left of this one cannot go on, either.
    """
    try:
        yield
    except Exception as error:
        line, code = _error_line(error)
        print(f"{line} [process {jax.process_index()}]", file=sys.stderr, flush=True)
        if is_first():
            time.sleep(
                GRACE
            )  # it is the coordinator: without it the others are ended by JAX, not by us
        os._exit(code)


def _error_line(error: Exception) -> tuple[str, int]:
    """What to print of an error, and the exit code."""
    if _is_lost(error):
        return (
            "error: another process of the job is gone, its own output says why; run the same "
            "command again in all of them to continue"
        ), 1
    return line_and_code(error) or (traceback.format_exc().rstrip(), 1)


def _is_lost(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that another process or the coordinator has gone.

    Not by its kind: what goes through Orbax or Grain arrives as a ValueError or an error of theirs.
    """
    if error is None:
        return False
    text = "" if isinstance(error, UserError | RunError) else str(error)  # may quote a person
    loose = isinstance(error, jax.errors.JaxRuntimeError)
    if _LOST.search(text) or (loose and any(word in text for word in _LOST_OF_JAX)):
        return True
    behind = error.__context__ if not error.__suppress_context__ else None
    parts = getattr(error, "exceptions", ())
    return any(map(_is_lost, [error.__cause__ or behind, *parts]))


@contextlib.contextmanager
def _exit_after(seconds: int, what: str) -> Iterator[None]:
    """Ends the process if the inside takes longer, because nothing in it can be interrupted."""

    def leave():
        print(
            f"error: waited {seconds} s for {what}; start the same command in every process, check "
            "JAX_COORDINATOR_ADDRESS, or set JANUS_JOIN_TIMEOUT to more seconds",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_address(address: str, patience: int) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"JAX_COORDINATOR_ADDRESS must be host:port, not {address!r}")
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
            return
        except (OSError, UnicodeError) as error:
            # A name may be new: clusters publish it when process 0 starts.
            if time.monotonic() > deadline:
                raise UserError(
                    f"JAX_COORDINATOR_ADDRESS: no host {host!r} ({error}), after {patience} s"
                ) from error
        time.sleep(1.0)


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
            line, code = line_and_code(caught) or (one_line(caught) or type(caught).__name__, 1)
            answer = {"user" if code == 2 else "run": line.removeprefix("error: ")}
    answer = _broadcast(answer)
    if error is not None:
        raise error
    if "user" in answer:
        raise UserError(answer["user"])
    if "run" in answer:
        raise RunError(f"process 0 failed: {answer['run']}")
    return answer["value"]


def to_host(array: Any) -> np.ndarray:
    """The whole of an array as numpy, also where other processes hold parts of it.

    All processes that hold a part must call it, at the same place.
    """
    split = isinstance(array, jax.Array) and not array.is_fully_addressable
    if split and not array.is_fully_replicated:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def who_lacks(mine: bool) -> list[int]:
    """The processes in which `mine` is false, the same answer in all; all must ask, at the same place."""
    if jax.process_count() == 1:
        return [] if mine else [0]
    answers = np.asarray(multihost_utils.process_allgather(np.int32(mine)))
    return [int(i) for i in np.flatnonzero(answers.ravel() == 0)]


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
