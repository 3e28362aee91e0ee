"""Low-rank adapters (LoRA) beside frozen kernels."""

from janus_jax.adapters.attach import attach_lora
from janus_jax.adapters.lora import (
    LORA_PARAMS,
    LoraOptions,
    add_lora,
    has_lora,
    lora_shapes,
    merge_lora,
    split_lora,
)

__all__ = [
    "LORA_PARAMS",
    "LoraOptions",
    "add_lora",
    "attach_lora",
    "has_lora",
    "lora_shapes",
    "merge_lora",
    "split_lora",
]
