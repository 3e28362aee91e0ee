"""Training: stages, losses, one step, the loop of a stage."""

from janus_jax.training.codebook_start import start_from_codebook
from janus_jax.training.contrastive import init_aux
from janus_jax.training.loop import Stopped, run_stage
from janus_jax.training.losses import janus_loss
from janus_jax.training.metrics import MetricsLog, read_metrics
from janus_jax.training.optimizer import learning_rate, make_optimizer
from janus_jax.training.stages import TRAINABLE, SourceSpec, Stage, select_stages, split_params
from janus_jax.training.step import TrainState, evaluated_params, init_state, make_step

__all__ = [
    "TRAINABLE",
    "MetricsLog",
    "SourceSpec",
    "Stage",
    "Stopped",
    "TrainState",
    "evaluated_params",
    "init_aux",
    "init_state",
    "janus_loss",
    "learning_rate",
    "make_optimizer",
    "make_step",
    "read_metrics",
    "run_stage",
    "select_stages",
    "split_params",
    "start_from_codebook",
]
