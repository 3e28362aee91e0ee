"""Products on a CPU by oneDNN, where the installed XLA has it: for bfloat16 it has kernels that XLA's own lack.

Nothing here matters on a TPU or GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Options of XLA: matrix products and convolutions become calls of oneDNN, but only those that its YNNPACK
# has not taken before.
OPTIONS = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
}
CALL = "__onednn$matmul"  # in the compiled program
# XLA leaves products with fewer floating point operations than this to a slower kernel.
FEWEST_OPERATIONS = 1 << 24
_LEAST_WIDTH = 1024  # of a model whose products are worth it in training


@functools.cache
def has_onednn() -> bool:
    """Whether XLA compiles products in bfloat16 into calls of oneDNN, found out by compiling one.

    Seen to be True with jaxlib 0.11.1 to 0.12.0.1 on x86 processors, and False with 0.10; always False where the
    default device is no CPU.
    """
    if jax.default_backend() != "cpu":
        return False
    inputs, outputs = 2048, 4096
    x = jax.ShapeDtypeStruct((2, inputs), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((outputs, inputs), jnp.bfloat16)
    multiply = jax.jit(lambda x, w: jnp.einsum("ri,oi->ro", x, w), compiler_options=OPTIONS)
    try:
        return CALL in multiply.lower(x, weight).compile().as_text()
    except jax.errors.JaxRuntimeError:  # an XLA without these options
        return False


def pays_in_training(width: int, dtype: Any) -> bool:
    """Whether a step of a model of this width and this dtype of products should ask for it.

    In float32 XLA's own products are as fast, and a narrow model keeps the program that it had.
    """
    return width >= _LEAST_WIDTH and jnp.dtype(dtype) == jnp.bfloat16


def jit(function: Callable, asks: bool, **options: Any) -> Any:
    """`jax.jit(function, **options)`; with `asks`, what runs on a single CPU has its products by oneDNN.

    Where it runs is where the arrays are that it is called with, so a program that is lowered for an accelerator,
    or inside of another one, is the plain one. It has `__call__` and `lower` alone.
    """
    plain = jax.jit(function, **options)
    return _Asking(plain, jax.jit(function, compiler_options=OPTIONS, **options)) if asks else plain


class _Asking:
    """Two programs of one function, of which the arguments choose one."""

    def __init__(self, plain: Any, onednn: Any):
        self._plain, self._onednn = plain, onednn

    def _chosen(self, arguments: tuple) -> Any:
        return self._onednn if _on_one_cpu(arguments) and has_onednn() else self._plain

    def __call__(self, *arguments: Any) -> Any:
        return self._chosen(arguments)(*arguments)

    def lower(self, *arguments: Any) -> Any:
        return self._chosen(arguments).lower(*arguments)


def _on_one_cpu(arguments: tuple) -> bool:
    """Whether the first array of all arguments, or shape with a place, is on one device, a CPU."""
    for leaf in jax.tree.leaves(arguments):
        if isinstance(leaf, jax.core.Tracer):
            return False
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None:
            devices = sharding.device_set
            return len(devices) == 1 and next(iter(devices)).platform == "cpu"
    return False
