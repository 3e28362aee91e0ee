"""How many pictures or answers fit at once: an estimate from shapes, and what the device has left."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.inference import checks
from janus_jax.inference.kv_cache import bytes_per_slot

_SHARE = 0.9  # of what is free: allocators need some room
# Temporary memory of the compiled programs at the size of Janus-Pro-1B: the VQ decoder takes 3.0 images of
# its widest layer a picture (CPU); while a cache grows, the old and the new one are there together, but layer
# by layer, in all 1.25 times the larger one (TPU v5e).
_VQ_COPIES = 3
_CACHE_COPIES = 1.5


class TooLittleMemory(UserError):
    """Not even the smallest batch fits into what is free."""


def picture_bytes(
    config: JanusConfig, prompt_length: int, guided: bool, cache_dtype: jnp.dtype
) -> int:
    """Bytes that one more picture takes while it is drawn."""
    rows = 2 if guided else 1
    cache_length = prompt_length + config.vq.num_codes
    cache = _CACHE_COPIES * cache_length * bytes_per_slot(config.decoder, cache_dtype)
    logits = 4 * 4 * config.vq.codebook_size
    return int(rows * (cache + logits)) + 8 * config.vq.image_size**2


def decode_bytes(config: JanusConfig, pictures: int) -> int:
    """Bytes that the VQ decoder takes for so many pictures at once, in float32."""
    return pictures * _VQ_COPIES * 4 * config.vq.image_size**2 * config.vq.ch


def answer_bytes(
    config: JanusConfig, cache_length: int, cache_dtype: jnp.dtype, pictures: int = 1
) -> int:
    """Bytes that one more answer takes: cache, logits, and SigLIP on its pictures."""
    cache = _CACHE_COPIES * cache_length * bytes_per_slot(config.decoder, cache_dtype)
    return int(cache) + 4 * 4 * config.decoder.vocab_size + pictures * vision_bytes(config)


def score_bytes(config: JanusConfig, length: int, targets: int, classes: int) -> int:
    """Bytes that one more row takes when it is scored in one pass, in float32."""
    cache = length * bytes_per_slot(config.decoder, jnp.float32)
    return cache + prefill_bytes(config, length) + 3 * 4 * targets * classes


def free_bytes(device: jax.Device | None = None) -> int:
    """Bytes that are free on `device` (the first one by default); of the machine, on a CPU."""
    device = device or jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def prefill_bytes(config: JanusConfig, length: int) -> int:
    """Bytes that one prompt of so many tokens takes while it is computed, in float32."""
    decoder = config.decoder
    attention = 3 * 4 * decoder.heads * length**2
    return attention + 4 * length * (8 * decoder.width + 4 * decoder.ffw)


def vision_bytes(config: JanusConfig) -> int:
    """Bytes that SigLIP takes for one picture."""
    patches, width = config.siglip.num_patches, config.siglip.width
    return 3 * 4 * config.siglip.heads * patches**2 + 32 * patches * width


def max_rows_that_fit(bytes_per_row: int, limit: int | None, max_batch: int, what: str) -> int:
    """How many rows fit: a power of two or `max_batch`, so that few programs are compiled; see `rows_that_fit`."""
    count = rows_that_fit(bytes_per_row, limit, max_batch, what)
    return count if count == max_batch else 1 << (count.bit_length() - 1)


def rows_that_fit(
    bytes_per_row: int, limit: int | None, max_batch: int, what: str, fixed: int = 0
) -> int:
    """How many rows fit, at most `max_batch`.

    Args:
      bytes_per_row: what one takes.
      limit: bytes to stay within; None takes what is free on the device.
      max_batch: upper bound.
      what: names a row in the message.
      fixed: bytes that all of them take together, besides.

    Raises:
      UserError: not even one row fits.
    """
    budget = _budget(limit)
    count = (budget - fixed) // bytes_per_row
    if count < 1:
        raise _too_little(f"even one {what}: it takes", bytes_per_row + fixed, budget, limit)
    return min(int(count), max_batch)


def check_rows(bytes_per_row: int, rows: int, limit: int | None, what: str) -> None:
    """As `max_rows_that_fit`, for rows that must be there together.

    Raises:
      UserError: they do not fit; `what` names them all in the message.
    """
    budget = _budget(limit)
    if rows * bytes_per_row > budget:
        raise _too_little(f"{what}: that takes", rows * bytes_per_row, budget, limit)


def _budget(limit: int | None) -> int:
    checks.memory_limit(limit)  # it may have been set since the model was made
    return int(_SHARE * free_bytes()) if limit is None else limit


def _too_little(what: str, needed: int, budget: int, limit: int | None) -> UserError:
    return TooLittleMemory(
        f"not enough memory for {what} {needed / 2**30:.2f} GiB, {budget / 2**30:.2f} GiB may be used"
        f"{'; raise memory_limit (of sample.py: --memory_gb)' if limit is not None else ''}"
    )
