"""One training step, as a pure function of (state, frozen parameters, batch).

Parameters are split into trainable and frozen before differentiation (`param_groups.split_params`), so
gradients of frozen parameters never exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from janus_jax import onednn
from janus_jax.models import JanusModel, Params
from janus_jax.param_groups import merge_params
from janus_jax.training.accumulation import loss_and_gradients
from janus_jax.training.grad_norms import grad_norms
from janus_jax.training.objectives import make_objective
from janus_jax.training.objectives.base import Batch, Metrics
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.stages import Stage
from janus_jax.training.state import TrainState, ema_decay

# step(state, frozen, batch, done) -> (state, metrics); `done` is `state.step` as the host knows it, so
# that choosing a program does not wait for the device.
StepFn = Callable[[TrainState, Params, Batch, int], tuple[TrainState, Metrics]]


def make_step(model: JanusModel, stage: Stage, pad_id: int) -> StepFn:
    """The step of a stage, jitted and donating its state.

    Returns:
      step(state, frozen, batch, done) -> (state, metrics): metrics are float32 scalars, at least
      `loss`, `tokens`, `grad_norm` (before clipping) and `skipped`: 1 where loss or gradient was not finite,
      and only `state.step` has changed. `step.lower` takes shapes, and lowers the program without running it.
    """
    optimizer = make_optimizer(stage)
    objective = make_objective(stage.objective, stage.options, pad_id)

    large = onednn.pays_in_training(model.config.decoder.width, model.policy.compute)

    @functools.partial(onednn.jit, asks=large, donate_argnums=0, static_argnums=3)
    def compiled(state: TrainState, frozen: Params, batch: Batch, phase: str):
        def loss_fn(trainable: Params, batch: Batch):
            return objective.loss(model, merge_params(frozen, trainable), batch, phase)

        loss, metrics, aux, grads = loss_and_gradients(
            loss_fn, state.trainable, batch, objective, model, stage.accumulate
        )
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        trainable = objective.after_update(state.trainable, trainable, phase)
        ema = state.ema
        if ema:
            ema = optax.incremental_update(trainable, ema, 1.0 - ema_decay(stage, state.step))
        extra, extra_metrics = objective.update_extra(state.extra, aux, phase)
        metrics |= extra_metrics | grad_norms(grads)
        metrics |= {
            "grad_norm": norm,
            "skipped": 1.0 - finite.astype(jnp.float32),
        }
        new = TrainState(state.step + 1, trainable, opt_state, ema, extra)
        # What is not finite would be in every later step: it counts, and changes nothing.
        kept = state.replace(step=new.step)
        new = jax.tree.map(functools.partial(jnp.where, finite), new, kept)
        return model.layout.pin_state(new), metrics

    def step(state: TrainState, frozen: Params, batch: Batch, done: int):
        state = objective.before_step(state, done)
        return compiled(state, frozen, batch, objective.phase(done))

    def lower(state: TrainState, frozen: Params, batch: Batch, done: int) -> jax.stages.Lowered:
        return compiled.lower(state, frozen, batch, objective.phase(done))

    step.lower = lower
    return step
