"""Kernels of the language model in int8, as the frozen base of an adapter.

A kernel [I, O] becomes int8 [I, O] and `kernel_scale` float32 [O], by which the outputs are multiplied: the
largest weight of each output is 127. Scanned layers have both with a leading layer axis.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models import Params
from janus_jax.models.layers import KERNEL_SCALE

_LARGEST = 127


def quantize(params: Params) -> Params:
    """The tree with the kernels of the decoder's layers in int8; the head and tables stay as they are.

    Works on numpy and jax arrays and on shapes. What is in int8 is left alone.
    """
    decoder = params.get("decoder", {})
    layers = {k: _quantized(v) for k, v in decoder.items() if k.startswith("layers")}
    return params | {"decoder": decoder | layers} if layers else params


def dequantize(params: Params) -> Params:
    """The inverse but for rounding: kernels in float32. Works on shapes, and on lazy arrays, which stay lazy."""
    result: dict[str, Any] = {}
    for key, value in params.items():
        if key != KERNEL_SCALE:
            result[key] = dequantize(value) if isinstance(value, dict) else value
    if KERNEL_SCALE in params:
        result["kernel"] = _product(params["kernel"], params[KERNEL_SCALE])
    return result


def has_int8(params: Params) -> bool:
    """Whether a tree has a kernel in int8."""
    return any(
        has_int8(value) if isinstance(value, dict) else key == KERNEL_SCALE
        for key, value in params.items()
    )


def _quantized(tree: Params) -> Params:
    result = {k: _quantized(v) if isinstance(v, dict) else v for k, v in tree.items()}
    kernel = tree.get("kernel")
    if kernel is not None and KERNEL_SCALE not in tree:
        result["kernel"], result[KERNEL_SCALE] = _parts(kernel)
    return result


def _parts(kernel: Any) -> tuple[Any, Any]:
    """(int8 values, scale of each output)."""
    if isinstance(kernel, jax.ShapeDtypeStruct):
        *lead, _, outputs = kernel.shape
        shape = jax.ShapeDtypeStruct
        return shape(kernel.shape, jnp.int8), shape((*lead, outputs), jnp.float32)
    if kernel.ndim == 3:  # a layer at a time: float32 of all would be four times what comes of it
        parts = [_parts(layer) for layer in kernel]
        stack = np.stack if isinstance(kernel, np.ndarray) else jnp.stack
        return tuple(stack(x) for x in zip(*parts, strict=True))
    module = np if isinstance(kernel, np.ndarray) else jnp
    exact = kernel.astype(module.float32)
    largest = module.abs(exact).max(axis=0)
    scale = module.where(largest > 0, largest / _LARGEST, 1).astype(module.float32)
    return module.round(exact / scale).astype(module.int8), scale


def _product(kernel: Any, scale: Any) -> Any:
    if hasattr(kernel, "load"):
        whole = lambda: _product(kernel.load(), scale.load())
        layer = lambda i: _product(kernel[i].load(), scale[i].load())
        stacked = layer if len(kernel.shape) == 3 else None
        return type(kernel)(kernel.shape, np.dtype(np.float32), whole, kernel.turn, stacked)
    if not hasattr(kernel, "astype"):
        return jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
    return kernel.astype(scale.dtype) * scale[..., None, :]
