"""Reading and writing the PyTorch formats."""

from janus_jax.weights.cache import load_checkpoint, our_directory
from janus_jax.weights.convert import params_from_torch, params_to_torch
from janus_jax.weights.names import HF, OFFICIAL, TABLES, NameTable
from janus_jax.weights.official_config import config_from_official

__all__ = [
    "HF",
    "OFFICIAL",
    "TABLES",
    "NameTable",
    "config_from_official",
    "load_checkpoint",
    "our_directory",
    "params_from_torch",
    "params_to_torch",
]
