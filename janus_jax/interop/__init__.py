"""Reading and writing the PyTorch formats."""

from janus_jax.interop.configs.official import config_from_official
from janus_jax.interop.conversion.cache import load_checkpoint, native_directory
from janus_jax.interop.conversion.convert import params_from_torch, params_to_torch
from janus_jax.interop.conversion.names import HF, OFFICIAL, TABLES, NameTable

__all__ = [
    "HF",
    "OFFICIAL",
    "TABLES",
    "NameTable",
    "config_from_official",
    "load_checkpoint",
    "native_directory",
    "params_from_torch",
    "params_to_torch",
]
