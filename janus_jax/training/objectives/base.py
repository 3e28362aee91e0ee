"""What the training step and loop ask of an objective."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from janus_jax.checkpoints.model_dir import EXTRAS
from janus_jax.models import JanusModel, Params

if TYPE_CHECKING:
    from janus_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Extra = dict[str, jax.Array]


class Objective(abc.ABC):
    """A loss, and what belongs to it. Only `loss` must be there; the rest does nothing by default.

    In one step: `before_step` and `phase` on the host; then, compiled once for each phase, `loss`, the
    optimizer, `after_update`, the average of the weights, `update_extra`.

    Attributes:
      options: `Stage.options`.
      pad_id: of the tokenizer.
    """

    def __init__(self, options: Mapping[str, Any], pad_id: int = 0):
        self.options, self.pad_id = options, pad_id

    @abc.abstractmethod
    def loss(
        self, model: JanusModel, params: Params, batch: Batch, phase: str
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        """(loss, (metrics, aux)).

        Args:
          params: the full tree, with `extra_params`.
          phase: from `phase`.

        Returns:
          Metrics are float32 scalars, at least `loss` and `tokens`; `aux` goes to `update_extra`.
        """

    def weight(self, model: JanusModel, batch: Batch) -> jax.Array:
        """What `loss` divides by: where a batch comes in parts, its loss is their mean by this weight."""
        return jnp.float32(jax.tree.leaves(dict(batch))[0].shape[0])

    def metric_weights(self, model: JanusModel, batch: Batch) -> dict[str, jax.Array]:
        """The same for metrics that are means over something else than `weight` says."""
        return {}

    def extra_params(self, model: JanusModel, key: jax.Array) -> Params:
        """Fresh parameters that only this loss needs, all in the group `EXTRAS`, or {}."""
        return {}

    def strip(self, params: Params) -> Params:
        """Parameters without `extra_params`: what is evaluated and handed to the next stage."""
        return {k: v for k, v in params.items() if k != EXTRAS}

    def init(self, trainable: Params) -> Extra:
        """The state, besides parameters and optimizer, that this objective starts with.

        Raises:
          UserError: the objective needs parameters to train that are not in `trainable`.
        """
        return {}

    def update_extra(self, extra: Extra, aux: Any, phase: str) -> tuple[Extra, Metrics]:
        """The extra state after a step, and metrics of it."""
        return extra, {}

    def after_update(self, before: Params, after: Params, phase: str) -> Params:
        """The trainable parameters after a step, given those before it and after the optimizer."""
        return after

    def before_step(self, state: TrainState, done: int) -> TrainState:
        """A change of the state between steps, decided on the host; `done` steps were made."""
        return state

    def phase(self, done: int) -> str:
        """What kind of step comes after `done` steps; each is compiled on its own."""
        return ""

    def phase_starts(self) -> tuple[int, ...]:
        """Steps, from 1, at which the loss begins to mean something else."""
        return ()
