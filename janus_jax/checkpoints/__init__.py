"""Models and training runs on disk."""

from janus_jax.checkpoints.manager import StageCheckpoints
from janus_jax.checkpoints.model_dir import (
    LoadedModel,
    finished_steps,
    load_model,
    save_model,
    write_card,
)
from janus_jax.checkpoints.storage import write_text

__all__ = [
    "LoadedModel",
    "StageCheckpoints",
    "finished_steps",
    "load_model",
    "save_model",
    "write_card",
    "write_text",
]
