"""Adapters (LoRA) on disk, in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

modules   the dense layers of both PyTorch formats, and where they are in the native tree
settings  `adapter_config.json`
reading   a directory to the leaves of an adapter; a model with an adapter in its kernels
writing   the leaves of an adapter to a directory
trained   the adapter that a training run has trained, and what it belongs on
"""

from janus_jax.interop.adapters.reading import (
    check_adapter,
    read_adapter,
    source_with_adapter,
    with_adapter,
)
from janus_jax.interop.adapters.trained import TrainedAdapter, trained_adapter
from janus_jax.interop.adapters.writing import check_adapter_destination, write_adapter

__all__ = [
    "TrainedAdapter",
    "check_adapter",
    "check_adapter_destination",
    "read_adapter",
    "source_with_adapter",
    "trained_adapter",
    "with_adapter",
    "write_adapter",
]
