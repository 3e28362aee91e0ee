"""A whole run: a config's stages in order, scores after each, a report at the end."""

from janus_jax.run.experiment import Experiment, build
from janus_jax.run.stage_data import Batches, batches
from janus_jax.run.training_run import train

__all__ = ["Batches", "Experiment", "batches", "build", "train"]
