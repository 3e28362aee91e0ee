"""What a training step changes, and how a stage starts and ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from janus_jax.adapters import quantize
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, Params, init_params
from janus_jax.param_groups import merge_params, split_params
from janus_jax.training.additions import add_params
from janus_jax.training.objectives import make_objective
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.stages import Stage

INT8 = "int8"
# Names of parameters that only ever are operands of products, or are looked up.
ROUNDED = ("kernel", "embedding", "pos_embed")


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      step: int32 scalar, steps done.
      trainable: parameters this stage trains.
      opt_state: of the optimizer.
      ema: average of `trainable`; {} where the stage keeps none.
      extra: of the objective (`Objective.init`), else {}.
    """

    step: jax.Array
    trainable: Params
    opt_state: Any
    ema: Params
    extra: dict[str, jax.Array]


def init_state(stage: Stage, params: Params) -> tuple[TrainState, Params]:
    """(state at step 0, frozen parameters) for a stage that starts from `params`.

    Raises:
      UserError: a pattern of `stage.trainable` matches nothing, or the objective needs others.
    """
    trainable, frozen = split_params(params, stage.trainable)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=make_optimizer(stage).init(trainable),
        # A copy: the step donates its buffers, and two leaves must not share one.
        ema=jax.tree.map(jnp.copy, trainable) if stage.ema_decay else {},
        extra=make_objective(stage.objective, stage.options).init(trainable),
    )
    return state, frozen


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """In which dtype a stage keeps parameters: those that it trains, and the weights that it does not.

    With `INT8`, frozen kernels of the language model's layers are in int8 (`adapters.quantize`), the other
    weights in bfloat16.
    """

    trained: str = "float32"
    frozen: str = "float32"


def with_dtypes(params: Params, stage: Stage, dtypes: Dtypes) -> Params:
    """Parameters, or their shapes, as a stage keeps them.

    Frozen kernels and tables may be rounded, for the network computes with them rounded in any case. Scales and
    biases are small; the image tokenizer computes in float32: both stay.
    """

    def cast(x: Any, dtype: str) -> Any:
        if str(x.dtype) == dtype or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
        return x.astype(dtype)

    def keep(path: tuple[Any, ...], x: Any) -> Any:
        rounded = path[0].key != "vq" and path[-1].key in ROUNDED
        if rounded:
            return cast(x, "bfloat16" if dtypes.frozen == INT8 else dtypes.frozen)
        return cast(x, dtypes.trained)

    trainable, frozen = split_params(params, stage.trainable)
    trainable = jax.tree.map(lambda x: cast(x, dtypes.trained), trainable)
    if dtypes.frozen == INT8:
        frozen = quantize(frozen)
    return merge_params(jax.tree_util.tree_map_with_path(keep, frozen), trainable)


def evaluated_params(state: TrainState, frozen: Params) -> Params:
    """The full tree to sample from and to hand on: the average where there is one."""
    return merge_params(frozen, state.ema or state.trainable)


def ema_decay(stage: Stage, step: jax.Array) -> jax.Array:
    """Decay of the average after `step` steps: it warms up, so that the first weights are soon forgotten."""
    return jnp.minimum(stage.ema_decay, (1.0 + step) / (10.0 + step))


def check_trainable(model: JanusModel, stages: Iterable[Stage]) -> None:
    """Starts every stage on shapes alone.

    Raises:
      UserError: the parameters that a stage names do not exist, its objective needs others, an adapter would not
        train, or something would train that gets no gradient.
    """
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: init_params(model, key), key)
    for stage in stages:
        try:
            params = add_params(model, stage, shapes, key)
            _, frozen = jax.eval_shape(lambda params, s=stage: init_state(s, params), params)
            _check_groups(stage, frozen)
        except UserError as error:
            raise UserError(f"config.stages.{stage.name}: {error}") from None


def _check_groups(stage: Stage, frozen: Params) -> None:
    """Refuses a freeze set that would train something else than it says."""
    if stage.objective == "janus" and "vq" not in frozen:
        raise UserError(
            "trainable has vq, to which the objective janus gives no gradient: leave the image tokenizer out"
        )
    paths = ("/".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(frozen))
    factor = next((path for path in paths if path.endswith(("/lora_a", "/lora_b"))), None)
    if factor is not None:
        raise UserError(
            f"options.lora adds {factor}, and trainable leaves it frozen: add '**/lora_a' and '**/lora_b' to it"
        )
