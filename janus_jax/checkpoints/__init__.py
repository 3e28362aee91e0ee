"""Models and training runs on disk."""

from janus_jax.checkpoints.manager import StageCheckpoints
from janus_jax.checkpoints.model_dir import (
    LoadedModel,
    abridged,
    finished_steps,
    foreign_parts,
    load_model,
    save_model,
    write_metadata,
)
from janus_jax.files import (
    DamagedError,
    is_leftover,
    read_json,
    read_json_lines,
    remove_leftovers,
)
from janus_jax.files import atomic_write as write_bytes
from janus_jax.files import atomic_write as write_text

__all__ = [
    "DamagedError",
    "LoadedModel",
    "StageCheckpoints",
    "abridged",
    "finished_steps",
    "foreign_parts",
    "is_leftover",
    "load_model",
    "read_json",
    "read_json_lines",
    "remove_leftovers",
    "save_model",
    "write_bytes",
    "write_metadata",
    "write_text",
]
