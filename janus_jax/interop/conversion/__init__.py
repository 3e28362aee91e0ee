"""Weights: PyTorch checkpoints to native model directories and back.

names         the table of the names and layouts of both formats
convert       state dicts to parameter trees and back
tensor_files  safetensors and .bin files; `pickles` reads the latter
source        a model of any format, opened without reading its weights
write         an opened model, written in any format; `lazy`, `output_dir`
hub, cache    models of the hub; conversions that are kept
foreign       checkpoints that are not supported, and why
"""

from janus_jax.interop.conversion.cache import (
    load_checkpoint,
    native_directory,
    open_checkpoint,
    part_of_run,
)
from janus_jax.interop.conversion.convert import params_from_torch, params_to_torch
from janus_jax.interop.conversion.hub import local_directory
from janus_jax.interop.conversion.names import HF, OFFICIAL, TABLES, NameTable
from janus_jax.interop.conversion.source import Source, open_source
from janus_jax.interop.conversion.write import (
    check_destination,
    summary,
    write_model,
    write_native,
    write_torch,
)

__all__ = [
    "HF",
    "OFFICIAL",
    "TABLES",
    "NameTable",
    "Source",
    "check_destination",
    "load_checkpoint",
    "local_directory",
    "native_directory",
    "open_checkpoint",
    "open_source",
    "params_from_torch",
    "params_to_torch",
    "part_of_run",
    "summary",
    "write_model",
    "write_native",
    "write_torch",
]
