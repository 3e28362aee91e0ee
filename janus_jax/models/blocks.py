"""A stack of identical blocks: scanned or unrolled, with or without rematerialisation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

REMAT = ("none", "full", "dots")


def remat_block(block: type[nn.Module], remat: str, *, scan: bool) -> type[nn.Module]:
    """Wraps a block class so that its activations are recomputed in the backward pass.

    Args:
      block: module class.
      remat: "none" keeps all activations, "full" keeps only the block's inputs, "dots" keeps also
        the results of products with weights.
      scan: whether the block runs inside a scan, where nothing has to be protected from CSE.

    Raises:
      ValueError: `remat` is none of these.
    """
    if remat not in REMAT:
        raise ValueError(f"remat must be one of {REMAT}, not {remat!r}")
    if remat == "none":
        return block
    saveable = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = saveable if remat == "dots" else None
    return nn.remat(block, prevent_cse=not scan, policy=policy)


def make_blocks(
    block: type[nn.Module], layers: int, *, scan: bool, remat: str, broadcast: int, **fields: Any
) -> nn.Module | list[nn.Module]:
    """One scanned module with stacked parameters, or a list of `layers` modules.

    Args:
      block: module class whose call takes (x, *shared) and returns (x, per-layer output or None).
      layers: number of blocks.
      scan: scanned (leading layer axis on every parameter) or unrolled.
      remat: see `remat_block`.
      broadcast: number of arguments after x, the same for every layer.
      **fields: attributes of the block.
    """
    wrapped = remat_block(block, remat, scan=scan)
    if not scan:
        return [wrapped(**fields) for _ in range(layers)]
    scanned = nn.scan(
        wrapped,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast,) * broadcast,
        length=layers,
    )
    return scanned(**fields)
