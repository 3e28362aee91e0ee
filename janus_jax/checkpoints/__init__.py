"""Models and training runs on disk."""

from janus_jax.checkpoints.manager import StageCheckpoints
from janus_jax.checkpoints.model_dir import (
    LoadedModel,
    few,
    finished_steps,
    foreign_parts,
    load_model,
    save_model,
    write_card,
)
from janus_jax.checkpoints.storage import (
    DamagedError,
    is_leftover,
    read_json,
    read_json_lines,
    remove_leftovers,
    write_bytes,
    write_text,
)

__all__ = [
    "DamagedError",
    "LoadedModel",
    "StageCheckpoints",
    "few",
    "finished_steps",
    "foreign_parts",
    "is_leftover",
    "load_model",
    "read_json",
    "read_json_lines",
    "remove_leftovers",
    "save_model",
    "write_bytes",
    "write_card",
    "write_text",
]
