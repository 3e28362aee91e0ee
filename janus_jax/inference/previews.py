"""Pictures that are still being drawn, and the files that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from janus_jax.processing import save_image

GREY = 127  # of what is not drawn yet


class Preview(NamedTuple):
    """Pictures that are still being drawn.

    Attributes:
      first: number of the first of them among all that were asked for.
      count: how many there are.
      done: codes drawn so far, of each.
      total: codes of a picture.
      pixels: computes them, uint8 [count, H, W, 3], grey where nothing is drawn yet.
    """

    first: int
    count: int
    done: int
    total: int
    pixels: Callable[[], np.ndarray]


# Sees the pictures while they are drawn. What it raises stops the drawing and reaches the caller.
OnPreview = Callable[[Preview], None]


class PreviewWriter:
    """An `OnPreview` that writes growing pictures to files and reports progress.

    Whole pictures are not written: that is left to the caller, who has them in the end.

    Args:
      files: one for each picture, written as PNG; None writes nothing.
      progress: is called with the number of codes drawn so far, of all pictures together.
    """

    def __init__(
        self, files: Sequence[Path] | None, progress: Callable[[int], None] = lambda done: None
    ):
        self._files, self._progress = files, progress

    def __call__(self, preview: Preview) -> None:
        self._progress(preview.first * preview.total + preview.count * preview.done)
        if self._files is None or preview.done == preview.total:
            return
        for i, pixels in enumerate(preview.pixels(), preview.first):
            save_image(self._files[i], Image.fromarray(pixels))


def hide_undrawn(pixels: np.ndarray, done: int, total: int, shade: int = GREY) -> np.ndarray:
    """`shade` where codes, row by row over the square grid, are not drawn yet."""
    if done == total:
        return pixels
    grid = int(total**0.5)
    side = pixels.shape[1] // grid
    drawn = (np.arange(total) < done).reshape(grid, grid)
    drawn = np.kron(drawn, np.ones((side, side), bool))
    return np.where(drawn[..., None], pixels, np.uint8(shade))
