"""Models and training runs on disk."""

from janus_jax.checkpoints.best import BEST, best_step
from janus_jax.checkpoints.lazy import LazyArray, load_leaves
from janus_jax.checkpoints.manager import StageCheckpoints
from janus_jax.checkpoints.marks import tokenizer_mark
from janus_jax.checkpoints.model_dir import (
    LoadedModel,
    abridged,
    finished_steps,
    foreign_parts,
    is_written,
    load_model,
    save_model,
    write_metadata,
)
from janus_jax.checkpoints.retention import Keep

__all__ = [
    "BEST",
    "Keep",
    "LazyArray",
    "LoadedModel",
    "StageCheckpoints",
    "abridged",
    "best_step",
    "finished_steps",
    "foreign_parts",
    "is_written",
    "load_leaves",
    "load_model",
    "save_model",
    "tokenizer_mark",
    "write_metadata",
]
