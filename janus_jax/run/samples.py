"""Pictures for people in samples/: grids of what a model draws, and questions with their answers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.evaluation import GalleryItem
from janus_jax.files import atomic_write, write_json
from janus_jax.parallel import is_first
from janus_jax.processing import grid

TILE = 144  # pixels of one picture in a grid that people look at


def write_grid(
    run_dir: Path,
    name: str,
    pictures: Sequence[np.ndarray],
    columns: int,
    prompts: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes samples/NAME.png with `prompts` in a .json next to it, in the first process.

    Args:
      run_dir: of the run.
      name: STAGE_STEP.
      pictures: uint8 [h, w, 3] each.
      columns: of the grid.
      prompts: one a picture, or one for the whole grid.
      settings: what else its .json has.
    """
    if not is_first():
        return
    path = sample_directory(run_dir) / f"{name}.png"
    tiles = [Image.fromarray(p) for p in pictures]
    side = max(TILE, tiles[0].width)
    tiles = [t.resize((side, side), Image.Resampling.NEAREST) for t in tiles]
    save_png(grid(tiles, columns), path)
    write_json(path.with_suffix(".json"), {"prompts": list(prompts), **(settings or {})})


def write_gallery(run_dir: Path, items: Sequence[GalleryItem]) -> None:
    """Writes questions.json and the pictures that it shows, in the first process."""
    if not is_first():
        return
    directory = sample_directory(run_dir)
    shown = []
    for item in items:
        path = directory / f"{item.name}.png"
        tile = Image.fromarray(item.picture).resize((TILE, TILE), Image.Resampling.NEAREST)
        save_png(tile, path)
        shown.append(
            {
                "image": f"{directory.name}/{path.name}",
                "question": item.question,
                "answer": item.answer,
                "truth": item.truth,
                "right": item.right,
            }
        )
    write_json(run_dir / "questions.json", shown)


def sample_directory(run_dir: Path) -> Path:
    """samples/ of a run, which is made."""
    directory = run_dir / "samples"
    directory.mkdir(exist_ok=True)
    return directory


def save_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    png = io.BytesIO()
    picture.save(png, format="PNG")
    atomic_write(path, png.getvalue())
