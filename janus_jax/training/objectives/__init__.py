"""What a stage optimizes, by name.

An objective has the loss, adds its own parameters and state, and may act on the host between steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from janus_jax.registry import Registry

if TYPE_CHECKING:
    from janus_jax.training.objectives.base import Objective

OBJECTIVES = Registry(
    "objective",
    {
        "janus": "janus_jax.training.objectives.janus:JanusObjective",
        "siglip": "janus_jax.training.objectives.siglip:SigLIPObjective",
        "vq": "janus_jax.training.objectives.vq:VQObjective",
    },
)


def make_objective(name: str, options: Mapping[str, Any], pad_id: int = 0) -> Objective:
    """The objective of a stage.

    Args:
      name: of `OBJECTIVES`.
      options: `Stage.options`.
      pad_id: of the tokenizer.

    Raises:
      UserError: no such objective.
    """
    return OBJECTIVES.get(name)(options, pad_id)


def phase_starts(name: str, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Steps, from 1, at which an objective's loss begins to mean something else; () if it is unknown."""
    return make_objective(name, options).phase_starts() if name in OBJECTIVES.names else ()


__all__ = ["OBJECTIVES", "make_objective", "phase_starts"]
