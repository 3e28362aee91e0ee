"""Gradients of a batch, at once or in parts that are summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.models import JanusModel, Params
from janus_jax.training.objectives.base import Batch, Metrics, Objective

SUMMED = ("tokens",)  # metrics that are counts
# (trainable, batch) -> (loss, (metrics, aux)).
LossFn = Callable[[Params, Batch], tuple[jax.Array, tuple[Metrics, Any]]]


def loss_and_gradients(
    loss_fn: LossFn,
    trainable: Params,
    batch: Batch,
    objective: Objective,
    model: JanusModel,
    parts: int,
) -> tuple[jax.Array, Metrics, Any, Params]:
    """(loss, metrics, aux, gradients) of a batch.

    Args:
      loss_fn: a mean over what `objective.weight` counts.
      model: whose layout says where rows and gradients lie.
      parts: computed one after the other; 1 computes all at once. Up to rounding the result is the same.
    """
    layout = model.layout
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        (loss, (metrics, aux)), grads = grad_fn(trainable, batch)
        return loss, metrics, aux, layout.pin_params(grads)

    def add(total: Params, part: Batch):
        (loss, (metrics, aux)), grads = grad_fn(trainable, part)
        weight = objective.weight(model, part)
        total = jax.tree.map(lambda t, g: t + (weight * g).astype(t.dtype), total, grads)
        metrics = metrics | {"loss": loss}
        weights = dict.fromkeys(metrics, weight) | objective.metric_weights(model, part)
        return layout.pin_params(total), (metrics, aux, weights)

    zeros = layout.pin_params(jax.tree.map(jnp.zeros_like, trainable))
    split = jax.tree.map(lambda x: layout.microbatches(x, parts), dict(batch))
    total, (metrics, aux, weights) = jax.lax.scan(add, zeros, split)
    scale = 1.0 / _or_one(jnp.sum(weights["loss"]))
    grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), total)
    metrics = {name: _combined(name, x, weights[name]) for name, x in metrics.items()}
    aux = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), aux)
    return metrics["loss"], metrics, aux, grads


def _combined(name: str, values: jax.Array, weights: jax.Array) -> jax.Array:
    if name in SUMMED:
        return jnp.sum(values)
    return jnp.sum(values * weights) / _or_one(jnp.sum(weights))


def _or_one(weight: jax.Array) -> jax.Array:
    return jnp.where(weight > 0, weight, 1.0)
