"""Reads a picture of an emoji scene back into objects, tints and cells, by matching sprites.

The world is closed, so no detector is needed: every cell of the picture is compared with every sprite in
every tint on the picture's background, and the nearest wins. How good this judge is, is itself measured
(`geneval.prove_judge`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from einops import rearrange

from janus_jax.emoji.world import BACKGROUNDS, TINTS, World

# A star is yellow by nature: below this mean squared difference per channel (of 1), natural colours and a
# tint count as the same. Eleven of the tiny world's 160 (object, tint) pairs are.
LOOK_ALIKE = 0.012


@dataclasses.dataclass(frozen=True)
class Detection:
    """One sprite seen: its object, tint (None: natural colours), cell, and the error of the match.

    `error` is the mean squared difference per channel, in units of 255 squared.
    """

    name: str
    tint: str | None
    row: int
    column: int
    error: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the judge sees. `unknown` counts cells that hold something, but no sprite."""

    background: str
    detections: tuple[Detection, ...]
    unknown: int


class Judge:
    """Reads pictures of one world.

    Args:
      world: the world.
      unknown_error: mean squared error per channel (of 1) above which a cell matches no sprite.
    """

    def __init__(self, world: World, unknown_error: float = 0.035):
        self._world, self._unknown_error = world, unknown_error
        self._keys = [(n, t) for n in world.names for t in (None, *TINTS)]
        sprites = np.stack([world.sprite(n, t) for n, t in self._keys])  # [K, c, c, 4]
        self._rgb, self._alpha = sprites[..., :3], sprites[..., 3:]
        self._templates: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.look_alikes = frozenset(
            (n, t)
            for n, t in self._keys
            if t is not None and self._distance((n, t), (n, None)) < LOOK_ALIKE
        )

    def _distance(self, a: tuple[str, str | None], b: tuple[str, str | None]) -> float:
        """Mean squared difference per channel (of 1) of two tints of one object."""
        i, j = self._keys.index(a), self._keys.index(b)
        return float(np.mean(np.square(self._alpha[i] * (self._rgb[i] - self._rgb[j]) / 255.0)))

    def read(self, picture: np.ndarray) -> Reading:
        """Reads one picture, uint8 [image_size, image_size, 3]."""
        grid, side = self._world.grid, self._world.cell
        picture = picture.astype(np.float32)
        cells = rearrange(picture, "(r y) (c x) C -> (r c) (y x C)", y=side, x=side)
        background = self._background(picture)
        templates, norms = self._on_background(background)
        squares = np.square(cells).sum(-1, keepdims=True)
        errors = (norms - 2.0 * cells @ templates.T + squares) / (cells.shape[1] * 255.0**2)
        detections, unknown = [], 0
        # errors [cells, K + 1]; the last template is the empty cell.
        for cell, index in enumerate(errors.argmin(-1)):
            error = float(errors[cell, index])
            if error > self._unknown_error:
                unknown += 1
            elif index < len(self._keys):
                detections.append(Detection(*self._keys[index], *divmod(cell, grid), error))
        return Reading(background, tuple(detections), unknown)

    def _background(self, picture: np.ndarray) -> str:
        """The background colour that most pixels are near to."""
        pixels = picture[::2, ::2].reshape(-1, 1, 3)
        colours = np.array(list(BACKGROUNDS.values()), np.float32)
        distance = np.square(pixels - colours).sum(-1)
        near = distance.min(-1) < 3.0 * 40.0**2
        votes = np.bincount(distance.argmin(-1)[near], minlength=len(colours))
        return list(BACKGROUNDS)[int(votes.argmax())]

    def _on_background(self, background: str) -> tuple[np.ndarray, np.ndarray]:
        if background not in self._templates:
            base = np.asarray(BACKGROUNDS[background], np.float32)
            on = self._alpha * self._rgb + (1.0 - self._alpha) * base
            empty = np.broadcast_to(base, on[:1].shape)
            flat = np.concatenate([on, empty]).reshape(len(on) + 1, -1)
            self._templates[background] = flat, np.square(flat).sum(-1)
        return self._templates[background]
