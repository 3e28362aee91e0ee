"""Products on a CPU: by oneDNN where the installed XLA has it, which reads weights faster than XLA's own.

Nothing here matters on a TPU or GPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from janus_jax.config import DecoderConfig

# Options of XLA: matrix products and convolutions become calls of oneDNN, but only those that its YNNPACK
# has not taken before.
_OPTIONS = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
}
_CALL = "__onednn$matmul"  # in the compiled program
# XLA leaves products with fewer floating point operations than this to a slower kernel.
_FEWEST_OPERATIONS = 1 << 24


@functools.cache
def has_onednn() -> bool:
    """Whether XLA compiles products in bfloat16 into calls of oneDNN, found out by compiling one.

    Seen to be True with jaxlib 0.11.1 to 0.12.0.1 on an x86 processor with bfloat16, and False with 0.10; always
    False where the default device is no CPU.
    """
    if jax.default_backend() != "cpu":
        return False
    inputs, outputs = 2048, 4096
    x = jax.ShapeDtypeStruct((2, inputs), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((outputs, inputs), jnp.bfloat16)
    multiply = jax.jit(lambda x, w: jnp.einsum("ri,oi->ro", x, w), compiler_options=_OPTIONS)
    try:
        return _CALL in multiply.lower(x, weight).compile().as_text()
    except jax.errors.JaxRuntimeError:  # an XLA without these options
        return False


def by_onednn(rows: int, weight_size: int) -> bool:
    """Whether a product of so many rows with a weight of so many elements should be oneDNN's."""
    return 2 * max(rows, 2) * weight_size >= _FEWEST_OPERATIONS and has_onednn()


def compiler_options(
    config: DecoderConfig,
    mesh: Mesh | None = None,
    platform: str | None = None,
    int8: bool = False,
) -> dict[str, bool | str] | None:
    """For `jax.jit`: None, or what makes the large products of a language model calls of oneDNN.

    Args:
      config: the language model.
      mesh: where it runs; only on a single device there is anything to ask for.
      platform: what is compiled for; None is the default one.
      int8: its weights are in int8, which XLA's own kernels read three times as fast.
    """
    if int8 or mesh is not None or platform not in (None, "cpu"):
        return None
    return dict(_OPTIONS) if by_onednn(2, config.width**2) else None
