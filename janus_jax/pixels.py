"""uint8 pictures <-> the floats the encoders read: mean and standard deviation 0.5, as the official processor.

Both take numpy arrays and jax arrays, traced ones too, and return the same kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def to_float(pixels: Any) -> Any:
    """uint8 [...] -> float32 in [-1, 1]: x / 255, then mean and std 0.5."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


def to_uint8(pixels: Any) -> Any:
    """Float [...] in [-1, 1] -> uint8, truncated like the official script, not rounded."""
    return ((pixels.astype(np.float32) + 1) / 2 * 255).clip(0, 255).astype(np.uint8)
