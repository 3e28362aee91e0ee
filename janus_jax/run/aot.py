"""The training step of a config, compiled for devices that are not here.

Shapes take the place of arrays, so neither weights nor data are needed; the step, its shardings and its batch
are those that `train` would run.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.data import PackedShape
from janus_jax.errors import RunError, UserError
from janus_jax.models import init_params
from janus_jax.parallel import batch_sharding, param_shardings, state_shardings
from janus_jax.parallel.hlo import collectives, parse
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import row_shape
from janus_jax.training import Stage, add_params, init_state, make_step
from janus_jax.training.state import with_dtypes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      program: of JAX.
      seconds: that compiling took.
      memory: bytes of one device: "arguments", "temporary", "output", "aliased" (outputs that take the place of
        arguments), "code", "unread" (parameters that are on the device though the step does not read them, such as
        the decoder of the image tokenizer) and "total".
      collectives: by kind, "count" and "bytes" of one device and step.
    """

    program: Any
    seconds: float
    memory: dict[str, int]
    collectives: dict[str, dict[str, int]]


def compile_step(
    experiment: Experiment,
    stage: Stage,
    codes: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compiles the step of a stage for the experiment's mesh.

    Args:
      experiment: built for the devices to compile for.
      stage: one of its stages.
      codes: pictures to generate come as codes, so that the step needs no image tokenizer.
      options: of the compiler.

    Raises:
      RunError: the compiler says that it does not fit.
    """
    state, frozen, batch = abstract_arguments(experiment, stage, codes)
    step = make_step(experiment.model, stage, experiment.processor.tokenizer.pad_id)
    began = time.perf_counter()
    lowered = step.lower(state, frozen, batch, stage.steps - 1)
    try:
        program = lowered.compile(compiler_options=dict(options or {}))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(f"does not fit: {str(error).splitlines()[0]}") from None
    seconds = time.perf_counter() - began
    memory = _memory(program, device_bytes((state, frozen, batch)))
    return Compiled(program, seconds, memory, collectives(parse(program.as_text())))


def abstract_arguments(
    experiment: Experiment, stage: Stage, codes: bool = False
) -> tuple[Any, Any, dict[str, jax.ShapeDtypeStruct]]:
    """(state, frozen parameters, batch) of a stage as shapes that know where they lie."""
    model, mesh = experiment.model, experiment.mesh
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda k: init_params(model, k), key)
    params = with_dtypes(add_params(model, stage, params, key), stage, experiment.dtypes)
    state, frozen = jax.eval_shape(lambda p: init_state(stage, p), params)
    placed = lambda tree, shardings: jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
    batch = batch_shapes(experiment, stage, codes)
    rows = batch_sharding(mesh)
    return (
        placed(state, state_shardings(state, mesh)),
        placed(frozen, param_shardings(frozen, mesh)),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch),
    )


def batch_shapes(
    experiment: Experiment, stage: Stage, codes: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """The packed batch of a stage (`janus_jax.batch`), as shapes.

    Raises:
      UserError: the stage does not train on packed rows.
    """
    if not stage.packed:
        raise UserError(f"{stage.name} does not train on packed rows: choose a stage that does")
    config, rows = experiment.janus_config, stage.batch_size
    row: PackedShape = row_shape(experiment.config, stage)
    shape = lambda dtype, *dims: jax.ShapeDtypeStruct((rows, *dims), dtype)
    picture = lambda count, size: shape(jnp.uint8, count, size, size, 3)
    tokens = ("tokens", "token_types", "segment_ids", "positions")
    targets = ("target_ids", "target_positions", "target_tasks", "target_sources")
    generated = ("gen_starts", "gen_sources")
    batch = {name: shape(jnp.int32, row.tokens) for name in tokens}
    batch |= {name: shape(jnp.int32, row.targets) for name in targets}
    batch |= {name: shape(jnp.int32, row.gen_images) for name in generated}
    batch |= {
        "target_weights": shape(jnp.float32, row.targets),
        "gen_weights": shape(jnp.float32, row.gen_images),
        "und_images": picture(row.und_images, config.siglip.image_size),
    }
    if codes:
        return batch | {"gen_codes": shape(jnp.int32, row.gen_images, config.vq.num_codes)}
    return batch | {"gen_images": picture(row.gen_images, config.vq.image_size)}


def device_bytes(tree: Any) -> int:
    """Of one device, without padding, of arrays or shapes that know where they lie."""
    local = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(local, jax.tree.leaves(tree)))


def _memory(program: Any, held: int) -> dict[str, int]:
    """`held`: bytes of all that the step is called with; the compiler counts what it reads, padded."""
    stats = program.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
        "unread": max(0, held - stats.argument_size_in_bytes),
    }
    total = sum(parts.values()) - 2 * parts["aliased"]
    return parts | {"total": total}
