"""Products on a CPU: by oneDNN where the installed XLA has it, which reads weights faster than XLA's own.

Nothing here matters on a TPU or GPU.
"""

from __future__ import annotations

from jax.sharding import Mesh

from janus_jax.config import DecoderConfig
from janus_jax.onednn import FEWEST_OPERATIONS, OPTIONS, has_onednn


def by_onednn(rows: int, weight_size: int) -> bool:
    """Whether a product of so many rows with a weight of so many elements should be oneDNN's."""
    return 2 * max(rows, 2) * weight_size >= FEWEST_OPERATIONS and has_onednn()


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
    return dict(OPTIONS) if by_onednn(2, config.width**2) else None
