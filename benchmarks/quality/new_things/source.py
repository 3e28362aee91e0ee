"""Scenes of the wide world, to make the ready-made parts with: image tokenizer and encoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality.new_things.world import WideWorld, in_style
from janus_jax.emoji.scene import Scene
from janus_jax.emoji.source import EmojiSource

_STYLED = 0.3  # share of the pictures in the style


class WideSource(EmojiSource):
    """Emoji scenes with the new objects among the old ones, and some in the style."""

    def __init__(self, task: str, **options: Any):
        super().__init__(task, **options)
        self._world = WideWorld()

    def extremes(self) -> list[EmojiSource]:
        return [self]

    def _scene(self, rng: np.random.Generator) -> Scene:
        scene = super()._scene(rng)
        return in_style(scene) if rng.random() < _STYLED else scene
