"""Low-rank adapters (LoRA) beside frozen kernels, which may be in int8."""

from janus_jax.adapters.attach import attach_lora
from janus_jax.adapters.int8 import dequantize, has_int8, quantize
from janus_jax.adapters.lora import (
    LORA_PARAMS,
    LoraOptions,
    add_lora,
    has_lora,
    lora_shapes,
    merge_lora,
    plain,
    split_lora,
)

__all__ = [
    "LORA_PARAMS",
    "LoraOptions",
    "add_lora",
    "attach_lora",
    "dequantize",
    "has_int8",
    "has_lora",
    "lora_shapes",
    "merge_lora",
    "plain",
    "quantize",
    "split_lora",
]
