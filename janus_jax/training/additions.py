"""Parameters that a stage adds to those it starts from, and what is handed on at its end."""

from __future__ import annotations

import functools
from typing import Any

import jax

from janus_jax.adapters import LoraOptions, add_lora, lora_shapes, plain
from janus_jax.models import JanusModel, Params
from janus_jax.param_groups import merge_params
from janus_jax.training.objectives import make_objective
from janus_jax.training.stages import Stage


def add_params(model: JanusModel, stage: Stage, params: Params, key: jax.Array) -> Params:
    """The parameters of a stage: those of its objective and of its adapter are fresh.

    Args:
      model: the network.
      stage: what trains.
      params: arrays; or shapes, for which shapes come back.
      key: of what is drawn at random.

    Raises:
      UserError: a target of the adapter matches nothing.
    """
    shapes = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
    make = functools.partial(_objective(stage).extra_params, model)
    params = (jax.eval_shape(make, key) if shapes else make(key)) | params
    lora = LoraOptions.of(stage.options)
    if lora is None:
        return params
    if shapes:
        return merge_params(params, lora_shapes(params, lora))
    return add_lora(params, lora, jax.random.fold_in(key, 1))


def handed_on(stage: Stage, params: Params) -> Params:
    """What is evaluated, and what the next stage starts from: without what the objective added, and with the
    adapter in the kernels."""
    return plain(_objective(stage).strip(params))


def _objective(stage: Stage) -> Any:
    return make_objective(stage.objective, stage.options)
