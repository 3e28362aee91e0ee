"""Small pictures inside a page, so that it is one file."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

SIDE = 224  # pixels of the longest side
LOSSLESS = 64  # up to so many pixels a side a PNG is small enough


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [h, w, 3] as a `data:` address of a PNG, or of a JPEG where it is large."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(file, "PNG")
        kind = "png"
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
