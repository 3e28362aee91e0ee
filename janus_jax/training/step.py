"""One training step, as a pure function of (state, frozen parameters, batch).

Parameters are split into trainable and frozen before differentiation (`stages.split_params`), so
gradients of frozen parameters never exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from janus_jax.models import JanusModel
from janus_jax.training import contrastive, losses, vq
from janus_jax.training.optimizer import make_optimizer
from janus_jax.training.stages import Params, Stage, split_params

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      step: int32 scalar, steps done.
      trainable: parameters this stage trains.
      opt_state: of the optimizer.
      ema: average of `trainable`; {} where the stage keeps none.
      extra: for the image tokenizer {"usage": float32 [codes], average uses of a code per batch;
        "recent": float32 [8 * codes, C], the last encoder outputs}, else {}.
    """

    step: jax.Array
    trainable: Params
    opt_state: Any
    ema: Params
    extra: dict[str, jax.Array]


# step(state, frozen, batch, done) -> (state, metrics); `done` is `state.step` as the host knows it, so
# that choosing a program does not wait for the device.
StepFn = Callable[[TrainState, Params, Batch, int], tuple[TrainState, losses.Metrics]]


def init_state(stage: Stage, params: Params) -> tuple[TrainState, Params]:
    """(state at step 0, frozen parameters) for a stage that starts from `params`."""
    trainable, frozen = split_params(params, stage.trainable)
    extra = {}
    if stage.objective == "vq":
        codebook = params["vq"]["quantize"]["embedding"]
        norm = jnp.maximum(jnp.linalg.norm(codebook, axis=-1, keepdims=True), 1e-12)
        extra = {
            "usage": jnp.zeros(codebook.shape[0], jnp.float32),
            # Until there are encoder outputs, the fresh codes themselves: a code must not become zero.
            "recent": jnp.tile(codebook / norm, (8, 1)).astype(jnp.float32),
        }
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=make_optimizer(stage).init(trainable),
        # A copy: the step donates its buffers, and two leaves must not share one.
        ema=jax.tree.map(jnp.copy, trainable) if stage.ema_decay else {},
        extra=extra,
    )
    return state, frozen


def evaluated_params(state: TrainState, frozen: Params) -> Params:
    """The full tree to sample from and to hand on: the average where there is one."""
    return frozen | (state.ema or state.trainable)


def make_step(model: JanusModel, stage: Stage, pad_id: int) -> StepFn:
    """The step of a stage, jitted and donating its state.

    Returns:
      step(state, frozen, batch, done) -> (state, metrics): metrics are float32 scalars, at least
      `loss`, `tokens` and `grad_norm` (before clipping).
    """
    optimizer = make_optimizer(stage)
    options = dict(stage.options)

    def loss_fn(trainable, frozen, batch, phase):
        params = frozen | trainable
        if stage.objective == "vq":
            return vq.vq_loss(model, params, batch, phase != "warmup", options["commitment"])
        if stage.objective == "siglip":
            loss, metrics = contrastive.siglip_loss(model, params, batch, pad_id)
            return loss, (metrics, {})
        reduction = options.get("reduction", "token")
        loss, metrics = losses.janus_loss(model, params, batch, reduction)
        return loss, (metrics, {})

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
    def step(state: TrainState, frozen: Params, batch: Batch, phase: str):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (metrics, aux)), grads = grad_fn(state.trainable, frozen, batch, phase)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        if phase == "fixed":
            # Not by its gradient alone: momentum would pull merged codes apart again.
            trainable = _with_codebook(trainable, _codebook(state.trainable))
        ema = state.ema
        if ema:
            # A young average forgets faster, so that it does not drag the start along.
            young = (1.0 + state.step) / (10.0 + state.step)
            decay = jnp.minimum(stage.ema_decay, young)
            ema = optax.incremental_update(trainable, ema, 1.0 - decay)
        extra = state.extra
        if stage.objective == "vq":
            recent = jnp.concatenate([extra["recent"], aux["z"]])[-len(extra["recent"]) :]
            extra = extra | {"recent": recent}
            if phase != "warmup":
                usage = vq.update_usage(extra["usage"], aux["codes"])
                extra = extra | {"usage": usage}
                metrics["codes_used"] = jnp.mean((usage > 0.05).astype(jnp.float32))
        metrics["grad_norm"] = optax.global_norm(grads)
        state = TrainState(state.step + 1, trainable, opt_state, ema, extra)
        return state, metrics

    if stage.objective != "vq":
        return functools.partial(_plain_step, step)
    return functools.partial(_vq_step, step, _codebook_care(stage), stage)


def _plain_step(step, state, frozen, batch, done):
    del done
    return step(state, frozen, batch, "")


def _vq_step(step, care, stage, state, frozen, batch, done):
    """First a plain auto-encoder; then the codebook is placed and learns, and idle codes are moved now and
    then; at last doubles are merged, and the rest gets used to a codebook that is fixed."""
    warmup, every, fixed = (stage.options[k] for k in ("warmup", "revive_every", "fixed_from"))
    if done == warmup:
        state = care(state, "place")
    if done == fixed:
        state = care(state, "merge")
    elif warmup < done < fixed and (done - warmup) % every == 0:
        state = care(state, "revive")
    phase = "warmup" if done < warmup else "learn" if done < fixed else "fixed"
    return step(state, frozen, batch, phase)


def _codebook(tree: Params) -> jax.Array:
    return tree["vq"]["quantize"]["embedding"]


def _with_codebook(tree: Params, codebook: jax.Array) -> Params:
    return tree | {"vq": tree["vq"] | {"quantize": {"embedding": codebook}}}


def _codebook_care(stage: Stage):
    threshold = stage.options.get("revive_below", 0.05)
    redundant = stage.options.get("redundant_above", 0.98)
    merged = stage.options.get("merge_above", 0.985)

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=1)
    def care(state: TrainState, what: str) -> TrainState:
        """Places all codes on recent encoder outputs, moves idle ones there, or merges doubles."""
        key = jax.random.fold_in(jax.random.key(0), state.step)
        codebook = _codebook(state.trainable)
        usage, recent = state.extra["usage"], state.extra["recent"]
        if what == "place":
            codebook = vq.place_codes(recent, codebook.shape[0], key)
            usage = jnp.full(codebook.shape[0], 10.0 * threshold)
        elif what == "revive":
            codebook, usage, _ = vq.revive_codes(codebook, usage, recent, key, threshold, redundant)
        else:
            codebook = vq.merge_doubles(codebook, usage, merged)
        return state.replace(
            trainable=_with_codebook(state.trainable, codebook),
            ema=_with_codebook(state.ema, codebook) if state.ema else {},
            extra={"usage": usage, "recent": recent},
        )

    return care
