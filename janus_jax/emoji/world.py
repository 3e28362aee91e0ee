"""The world of emoji scenes: which objects, colours and places exist, and what is held out.

Everything here is a constant of the data set. A scene lives on a square grid of cells, one sprite to a
cell; pictures are measured in pixels, cells in (row, column) from the top left.

Held out of all training (tokenizer, encoder and language model alike), to measure composition:
unordered pairs of objects, and (object, tint) pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.errors import UserError, nearest

SPRITE_PX = 64
_COLUMNS = 32

TINTS = {
    "red": (226, 32, 40),
    "green": (30, 168, 60),
    "blue": (44, 84, 232),
    "yellow": (250, 208, 20),
    "purple": (150, 50, 200),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (160, 164, 170),
    "pink": (255, 190, 212),
    "cyan": (160, 226, 240),
}

# Word used in captions -> name in the sprite sheet, for the 32 objects of the tiny world.
_TINY_OBJECTS = {
    **{n: n for n in "dog cat pig rabbit penguin owl frog turtle fish crab butterfly".split()},
    **{n: n for n in "ladybug sunflower cactus mushroom banana apple strawberry carrot".split()},
    **{n: n for n in "pizza cake house bus car airplane rocket star guitar key crown".split()},
    "panda": "panda face",
    "umbrella": "umbrella",
}
_PLURALS = {"fish": "fish", "butterfly": "butterflies", "strawberry": "strawberries"}


def plural(name: str) -> str:
    """The plural of an object's name, e.g. "bus" -> "buses"."""
    if name in _PLURALS:
        return _PLURALS[name]
    return name + ("es" if name.endswith(("s", "x", "sh", "ch")) else "s")


def article(phrase: str) -> str:
    """`phrase` with its indefinite article, e.g. "apple" -> "an apple"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@functools.cache
def sprite_sheet() -> tuple[tuple[str, ...], np.ndarray]:
    """Names and pictures of all shipped sprites: 814 names, uint8 [814, 64, 64, 4] RGBA."""
    assets = resources.files("janus_jax.emoji") / "assets"
    names = tuple(
        s["name"] for s in json.loads((assets / "noto_emoji.json").read_text())["sprites"]
    )
    with (assets / "noto_emoji_64px.webp").open("rb") as file:
        sheet = np.asarray(Image.open(file).convert("RGBA"))
    tiles = sheet.reshape(-1, SPRITE_PX, _COLUMNS, SPRITE_PX, 4).swapaxes(1, 2)
    return names, tiles.reshape(-1, SPRITE_PX, SPRITE_PX, 4)[: len(names)]


@dataclasses.dataclass(frozen=True)
class World:
    """One choice of picture size, grid and objects.

    Attributes:
      image_size: side of a scene, pixels; a multiple of `grid`.
      grid: cells per side; a sprite fills one cell.
      objects: "tiny" (32 objects with one-word names) or "all" (814 sprites).

    Raises:
      UserError: an impossible value.
    """

    image_size: int = 48
    grid: int = 3
    objects: str = "tiny"

    def __post_init__(self):
        if self.objects not in ("tiny", "all"):
            raise UserError(f"world.objects must be tiny or all, not {self.objects!r}")
        if not 2 <= self.grid <= 4 or self.image_size % self.grid:
            raise UserError("world.grid must be 2, 3 or 4, and world.image_size a multiple of it")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> World:
        """The world of a config's options. Raises UserError for a field that it does not have, too."""
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(options, Mapping):
            raise UserError(f"world must be a dict with {', '.join(known)}, not {options!r}")
        for name in options:
            if name not in known:
                raise UserError(f"world has no field {name!r}.{nearest(str(name), known)}")
        return cls(**options)

    @property
    def cell(self) -> int:
        """Side of a cell and of a sprite, pixels."""
        return self.image_size // self.grid

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' names, in a fixed order."""
        return tuple(_object_table(self.objects))

    @functools.cached_property
    def held_out_pairs(self) -> frozenset[tuple[str, str]]:
        """A tenth of all unordered object pairs (each sorted), the same on every machine."""
        return _held_out_pairs(self.objects)

    @functools.cached_property
    def held_out_tints(self) -> frozenset[tuple[str, str]]:
        """A tenth of all (object, tint) pairs: one tint of every other object."""
        tints = list(TINTS)
        return frozenset((n, tints[(i // 2) % 5]) for i, n in enumerate(self.names) if i % 2 == 0)

    def is_held_out_pair(self, a: str, b: str) -> bool:
        return tuple(sorted((a, b))) in self.held_out_pairs

    def sprite(self, name: str, tint: str | None) -> np.ndarray:
        """Sprite as float32 [cell, cell, 4], colour 0-255, alpha 0-1; tinted if `tint` is given."""
        return _sprite(self.objects, self.cell, name, tint)


@functools.cache
def _object_table(objects: str) -> dict[str, int]:
    names, _ = sprite_sheet()
    index = {name: i for i, name in enumerate(names)}
    if objects == "tiny":
        return {word: index[sprite] for word, sprite in _TINY_OBJECTS.items()}
    return index


@functools.cache
def _held_out_pairs(objects: str) -> frozenset[tuple[str, str]]:
    pairs = list(itertools.combinations(sorted(_object_table(objects)), 2))
    chosen = np.random.default_rng(7).permutation(len(pairs))[: len(pairs) // 10]
    return frozenset(pairs[i] for i in chosen)


@functools.cache
def _sprite(objects: str, cell: int, name: str, tint: str | None) -> np.ndarray:
    _, tiles = sprite_sheet()
    tile = Image.fromarray(tiles[_object_table(objects)[name]])
    small = np.asarray(tile.resize((cell, cell), Image.Resampling.LANCZOS), np.float32)
    rgb, alpha = small[..., :3], small[..., 3:] / 255.0
    if tint is not None:
        # Keep the drawing's light and dark, replace its hue: dark parts stay dark, light parts pale.
        light = rgb @ np.array([0.299, 0.587, 0.114], np.float32) / 255.0
        colour = np.asarray(TINTS[tint], np.float32)
        dark = np.clip(0.35 + 1.1 * light, 0.0, 1.0)[..., None] * colour
        pale = np.clip((light - 0.6) / 0.4, 0.0, 1.0)[..., None] * 0.45
        rgb = dark * (1.0 - pale) + 255.0 * pale
    return np.concatenate([rgb, alpha], -1).astype(np.float32)
