"""How many rows the server computes together: what is asked for, as far as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

from janus_jax.errors import UserError
from janus_jax.inference import Janus, checks, memory
from janus_jax.inference.batching import round_up


def sizes_that_fit(
    janus: Janus, sizes: Sequence[int], row: int, fixed: int, what: str
) -> list[int]:
    """The numbers of rows to compile for.

    Args:
      janus: the model, with its limits.
      sizes: that are wanted.
      row: bytes that each row takes on the devices that have it.
      fixed: bytes that all rows together take besides, on every device.
      what: names a row in messages.

    Returns:
      Ascending. On a mesh whose data axes are larger than 1 a single one, as a part of the rows would not lie
      evenly on the devices.

    Raises:
      UserError: no size, or not even the smallest fits.
    """
    shards = janus.data_shards
    most = max(1, janus.max_batch // shards)
    fit = shards * memory.rows_that_fit(row, janus.memory_limit, most, what, fixed)
    return choose_sizes(sizes, fit, shards)


def choose_sizes(sizes: Sequence[int], fit: int, shards: int = 1) -> list[int]:
    """Those of `sizes` that are at most `fit`; see `sizes_that_fit`."""
    sizes = sorted(
        {round_up(checks.whole("each of sizes", size, least=1), shards) for size in sizes}
    )
    if not sizes:
        raise UserError("sizes is an empty list: give at least one number of rows")
    if sizes[0] > fit:
        raise UserError(
            f"sizes: not even {sizes[0]} rows fit, the limit of memory and max_batch is {fit}: give a smaller one"
        )
    found = [size for size in sizes if size <= fit]
    return found if shards == 1 else found[-1:]
