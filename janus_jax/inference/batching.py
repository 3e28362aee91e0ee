"""Requests of any number and length -> few fixed shapes: left padding and bucketed sizes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.processing.processor import unconditional_ids

BUCKET = 16  # lengths are rounded up to multiples of this


def round_up(length: int, multiple: int = BUCKET) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def padded_size(count: int, max_batch: int) -> int:
    """Rows of the program that serves `count` requests: a power of two, at most `max_batch`."""
    return min(max_batch, 1 << (count - 1).bit_length())


def bucket(length: int, least: int = BUCKET) -> int:
    """`length` rounded up to one of four sizes an octave: few programs, at most a quarter too long."""
    return round_up(length, max(least, (1 << length.bit_length()) // 8))


def left_pad(rows: Sequence[Sequence[int]], size: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-aligns `rows` in a bucketed length; repeats the last row up to `size` rows.

    Lengths are multiples of `BUCKET`, few as prompts are; `bucket` makes fewer of long ones.

    Returns:
      ids int32 [size, T] and mask bool [size, T], False on the padding.
    """
    rows = [*rows, *[rows[-1]] * (size - len(rows))]
    length = bucket(max(map(len, rows)))
    ids = np.full((size, length), fill, np.int32)
    mask = np.zeros((size, length), bool)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    return ids, mask


def deduplicate_prompts(
    requests: Sequence[Sequence[int]], columns: int, guided: bool, pad_id: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Distinct prompts of a batch, and the rows that continue them.

    The unconditional prompt depends on the length alone, so that one serves all prompts of that length.

    Args:
      requests: the prompt ids of each picture.
      columns: B; more than there are requests repeats the last one.
      guided: whether there are unconditional rows.
      pad_id: of the unconditional prompts.

    Returns:
      (prompts, rows [C][B] into them).
    """
    requests = [*requests, *[requests[-1]] * (columns - len(requests))]
    halves = [requests]
    if guided:
        halves.append([unconditional_ids(ids, pad_id) for ids in requests])
    prompts: dict[tuple[int, ...], int] = {}
    rows = [[prompts.setdefault(tuple(ids), len(prompts)) for ids in half] for half in halves]
    return [list(ids) for ids in prompts], rows


def positions_of(mask: jax.Array) -> jax.Array:
    """Rotary positions [B, T] of left-padded rows: 0 at the first real token."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0).astype(jnp.int32)


def prefill_mask(mask: jax.Array, length: int) -> jax.Array:
    """Attention of the prompt over a cache of S = `length` slots.

    Causal over the real tokens. A padding token sees itself only: a row of the softmax without any
    key would be undefined, and nothing reads what it computes.

    Args:
      mask: bool [B, T], False on the left padding.

    Returns:
      bool [B, T, S].
    """
    T = mask.shape[1]
    query, key = jnp.arange(T)[:, None], jnp.arange(length)[None]
    keys = jnp.pad(mask, ((0, 0), (0, length - T)))
    return (keys[:, None] & (key <= query)) | (key == query)
