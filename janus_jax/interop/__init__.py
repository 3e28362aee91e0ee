"""Between this package and PyTorch: weights (`conversion`), their configs, adapters, numbers (`parity`)."""

from janus_jax.interop.configs import config_from_official
from janus_jax.interop.conversion import (
    HF,
    OFFICIAL,
    TABLES,
    NameTable,
    load_checkpoint,
    local_directory,
    native_directory,
    open_checkpoint,
    params_from_torch,
    params_to_torch,
)

__all__ = [
    "HF",
    "OFFICIAL",
    "TABLES",
    "NameTable",
    "config_from_official",
    "load_checkpoint",
    "local_directory",
    "native_directory",
    "open_checkpoint",
    "params_from_torch",
    "params_to_torch",
]
