"""A stack of identical blocks: scanned or unrolled, with or without rematerialisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from janus_jax.models.attention_kernels import ATTENTION_NAME

_policies = jax.checkpoint_policies
_DOTS = _policies.dots_with_no_batch_dims_saveable
_ATTENTION = _policies.save_only_these_names(ATTENTION_NAME)
# What the blocks keep for the backward pass, from the most memory to the least.
POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # everything: nothing is computed again
    "dots+attention": _policies.save_from_both_policies(_DOTS, _ATTENTION),
    "dots": _DOTS,  # the inputs of blocks, and the results of products with weights
    "attention": _ATTENTION,  # the inputs of blocks, and what attention gave
    "full": None,  # the inputs of blocks alone
}
REMAT = tuple(POLICIES)


def remat_block(block: type[nn.Module], remat: str, *, scan: bool) -> type[nn.Module]:
    """Wraps a block class so that its activations are recomputed in the backward pass.

    Args:
      block: module class.
      remat: a key of `POLICIES`.
      scan: whether the block runs inside a scan, where nothing has to be protected from CSE.

    Raises:
      ValueError: `remat` is none of these.
    """
    if remat not in POLICIES:
        raise ValueError(f"remat must be one of {REMAT}, not {remat!r}")
    if remat == "none":
        return block
    return nn.remat(block, prevent_cse=not scan, policy=POLICIES[remat])


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
