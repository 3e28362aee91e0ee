"""Operations of a training step, counted from the architecture, what trains, and what is in the batch."""

from janus_jax.training.flops.products import Flops
from janus_jax.training.flops.step import StepFlops

__all__ = ["Flops", "StepFlops"]
