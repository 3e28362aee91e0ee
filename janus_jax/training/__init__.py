"""Training: stages, objectives, one step, the loop of a stage."""

from janus_jax.freeze_sets import TRAINABLE
from janus_jax.param_groups import merge_params, split_params
from janus_jax.training.additions import add_params, handed_on
from janus_jax.training.codebook_start import start_from_codebook
from janus_jax.training.grad_norms import grad_norms
from janus_jax.training.held_out import HeldOutWatch
from janus_jax.training.loop import Stopped, StoppedEarly, run_stage
from janus_jax.training.meter import Meter
from janus_jax.training.metrics import MetricsLog, read_metrics
from janus_jax.training.objectives import OBJECTIVES, make_objective
from janus_jax.training.optimizer import learning_rate, make_optimizer
from janus_jax.training.profiling import Profiler, profiled_steps
from janus_jax.training.stages import SourceSpec, Stage, select_stages
from janus_jax.training.state import TrainState, check_trainable, evaluated_params, init_state
from janus_jax.training.step import make_step

__all__ = [
    "OBJECTIVES",
    "TRAINABLE",
    "HeldOutWatch",
    "Meter",
    "MetricsLog",
    "Profiler",
    "SourceSpec",
    "Stage",
    "Stopped",
    "StoppedEarly",
    "TrainState",
    "add_params",
    "check_trainable",
    "evaluated_params",
    "grad_norms",
    "handed_on",
    "init_state",
    "learning_rate",
    "make_objective",
    "make_optimizer",
    "make_step",
    "merge_params",
    "profiled_steps",
    "read_metrics",
    "run_stage",
    "select_stages",
    "split_params",
    "start_from_codebook",
]
