"""Pictures -> model pixels and back, as the official processor does it.

Source: deepseek-ai/Janus `janus/models/image_processing_vlm.py` and `generation_inference.py`.
Arrays are uint8 [H, W, 3] in RGB, or float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from janus_jax.errors import UserError

BACKGROUND = (127, 127, 127)  # int(0.5 * 255), the padding of the understanding path
MIN_SIDE = 14  # min_size of the official processor

ImageLike = str | Path | Image.Image | np.ndarray


def load_image(source: ImageLike) -> Image.Image:
    """Reads a picture as RGB; transparency is laid over white, EXIF rotation is applied.

    Args:
      source: a file name, a PIL image, or a uint8 array [H, W], [H, W, 3] or [H, W, 4].

    Raises:
      UserError: unreadable file, a picture without pixels, or an array of another type.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or 0 in source.shape:
            raise UserError(
                "an image array must be non-empty uint8 [H, W, 3], "
                f"got {source.dtype} {list(source.shape)}"
            )
        if source.ndim == 3 and source.shape[2] not in (3, 4):
            raise UserError(f"an image array must have 3 or 4 channels, got {source.shape[2]}")
        image, name = Image.fromarray(source), "the image array"
    elif isinstance(source, Image.Image):
        image, name = source, "the image"
    else:
        name = f"image {source}"
        try:
            with Image.open(source) as opened:
                image = ImageOps.exif_transpose(opened)
                image.load()
        except Image.DecompressionBombError as error:
            raise UserError(f"{name} is too large: {error}") from error
        except Exception as error:  # Pillow raises many types for broken files
            reason = str(error) or type(error).__name__
            raise UserError(f"cannot read {name}: {reason}") from error
    if 0 in image.size:
        raise UserError(f"{name} has no pixels: its size is {image.width}x{image.height}")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def understanding_pixels(image: Image.Image, size: int) -> np.ndarray:
    """The understanding input: long side `size`, padded to a square with grey.

    Sides are floored (not rounded) and at least 14; bicubic on the PIL image; centred.

    Returns:
      uint8 [size, size, 3].
    """
    longest = max(image.size)
    width, height = (
        min(size, max(int(side / longest * size), MIN_SIDE))  # floor
        for side in image.size
    )
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), BACKGROUND)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def generation_pixels(image: Image.Image, size: int) -> np.ndarray:
    """The generation target: short side `size`, centre crop (Janus-Pro report, training data).

    Returns:
      uint8 [size, size, 3].
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 [...] -> float32 in [-1, 1]: x / 255, then mean and std 0.5."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Float [...] in [-1, 1] -> uint8, truncated like the official script, not rounded."""
    pixels = np.asarray(pixels, np.float32)
    return np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)


def grid(images: Sequence[Image.Image | np.ndarray], columns: int | None = None) -> Image.Image:
    """Pictures of one size, row by row, on white; `columns` defaults to a near-square grid."""
    if not images:
        raise UserError("a grid needs at least one image")
    tiles = [i if isinstance(i, Image.Image) else Image.fromarray(i) for i in images]
    columns = min(columns or int(np.ceil(np.sqrt(len(tiles)))), len(tiles))
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return sheet
