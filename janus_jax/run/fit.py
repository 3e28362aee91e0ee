"""Whether a step fits, what it would take, and what to change where it does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax

from janus_jax.errors import RunError, UserError
from janus_jax.parallel import BATCH_AXES
from janus_jax.run.aot import Compiled, abstract_arguments, compile_step, device_bytes
from janus_jax.run.experiment import Experiment
from janus_jax.training import Stage, merge_params
from janus_jax.training.flops import StepFlops
from janus_jax.training.state import INT8

GIB = 2**30
MOST_ROWS = 1024  # that are looked for, of one device
_RESERVED = 0.03  # of a device's memory, that the runtime and fragments take


@dataclasses.dataclass(frozen=True)
class Parts:
    """Bytes of one device that a stage holds between steps.

    Attributes:
      trained: parameters that it trains; frozen: those that it does not.
      optimizer: its state; average: of the weights.
      batch: one step's.
    """

    trained: int
    frozen: int
    optimizer: int
    average: int
    batch: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def resident(experiment: Experiment, stage: Stage, codes: bool = False) -> Parts:
    """What a stage holds on one device, from shapes alone."""
    state, frozen, batch = abstract_arguments(experiment, stage, codes)
    return Parts(
        trained=device_bytes(state.trainable),
        frozen=device_bytes(frozen),
        optimizer=device_bytes(state.opt_state),
        average=device_bytes(state.ema),
        batch=device_bytes(batch),
    )


def step_flops(experiment: Experiment, stage: Stage) -> StepFlops:
    """Counts a stage's operations."""
    state, frozen, _ = abstract_arguments(experiment, stage)
    params = merge_params(frozen, state.trainable)
    return StepFlops(experiment.janus_config, stage, params, experiment.model.remat)


def row_shards(experiment: Experiment) -> int:
    """Parts that the mesh cuts the rows of a step into."""
    return math.prod(experiment.mesh.shape[axis] for axis in BATCH_AXES)


def fits(memory: Mapping[str, int], limit: float) -> bool:
    """Whether a compiled step's memory is within `limit` bytes, but for what a device keeps back."""
    return memory["total"] <= limit * (1 - _RESERVED)


def advice(experiment: Experiment, stage: Stage, memory: Mapping[str, int], limit: float) -> str:
    """One line: what to change, most harmless first, so that a step fits."""
    config, name = experiment.config, stage.name
    at_once = stage.batch_size // row_shards(experiment) // stage.accumulate
    if memory["arguments"] > 0.7 * limit:
        sizes = dict(experiment.mesh.shape)
        if sizes["data"] > 1:
            shards = sizes["data"] * sizes["fsdp"]
            return f"split the parameters further: --config.mesh.data=1 --config.mesh.fsdp={shards}"
        if config.policy.frozen_dtype not in ("bfloat16", INT8):
            return "keep frozen weights in bfloat16: --config.policy.frozen_dtype=bfloat16"
        if "lora" in stage.options:  # its moments are small
            if config.policy.frozen_dtype != INT8:
                return "keep frozen layers in int8: --config.policy.frozen_dtype=int8"
            return f"parameters {_too_large(memory, limit)}: take more devices"
        return (
            f"parameters and optimizer {_too_large(memory, limit)}: take more devices, or moments in bfloat16: "
            f"--config.stages.{name}.options.optimizer.mu_dtype=bfloat16, and .nu_dtype"
        )
    if experiment.model.remat != "full":
        return "keep less for the backward pass: --config.policy.remat=full"
    if not config.policy.targets_at_once or config.policy.targets_at_once > 512:
        return "compute fewer logits at a time: --config.policy.targets_at_once=512"
    if at_once > 1:
        # Temporaries shrink with the rows; take the next count that divides them.
        more = next(n for n in range(2, at_once + 1) if at_once % n == 0)
        return (
            f"compute a step in parts: --config.stages.{name}.accumulate={stage.accumulate * more}"
        )
    if config.policy.pictures_at_once != 1:
        return "encode fewer pictures at a time: --config.policy.pictures_at_once=1"
    return "take shorter rows (--config.data.row.tokens), more devices, or split them (--config.mesh.tensor)"


def _too_large(memory: Mapping[str, int], limit: float) -> str:
    if memory["arguments"] > limit:
        return "alone are too large"
    held, rest = (x / 2**30 for x in (memory["arguments"], memory["total"] - memory["arguments"]))
    return f"take {held:.1f} GiB, which leaves too little for the {rest:.1f} of gradients and activations"


def largest_batch(
    experiment: Experiment,
    stage: Stage,
    limit: float,
    compile_rows: Callable[[int], Compiled | None],
) -> int:
    """The most rows a device can take at once: found from two compiled steps, and tried.

    Args:
      limit: bytes of a device.
      compile_rows: compiles a step of so many rows a device; None where the compiler refuses.
    """
    one = compile_rows(1)
    if one is None or not fits(one.memory, limit):
        return 0
    two = compile_rows(2)
    if two is None or not fits(two.memory, limit):
        return 1
    slope = max(two.memory["total"] - one.memory["total"], 1)
    room = limit * (1 - _RESERVED) - one.memory["total"]
    rows = 1 + int(room // slope)
    rows = min(rows, MOST_ROWS)
    while rows > 2:
        found = compile_rows(rows)
        if found is not None and fits(found.memory, limit):
            return rows
        rows = max(2, int(rows * 0.8))
    return 2


def with_rows(stage: Stage, experiment: Experiment, rows: int) -> Stage:
    """The stage with so many rows a device, all at once."""
    return dataclasses.replace(stage, batch_size=rows * row_shards(experiment), accumulate=1)


def try_compile(experiment: Experiment, stage: Stage, codes: bool) -> Compiled | None:
    """`compile_step`, or None where the compiler says that it does not fit."""
    try:
        return compile_step(experiment, stage, codes)
    except RunError:
        return None


def device_limit(device: jax.Device) -> int:
    """Bytes that one device of this machine has for arrays; of a CPU, its share of the memory of the system.

    Raises:
      UserError: it is not known.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform == "cpu":
        import os

        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return int(pages / max(1, jax.local_device_count()))
    raise UserError(f"{device.device_kind} does not say how much memory it has")
