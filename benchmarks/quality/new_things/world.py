"""The tiny world with six more objects, and all its objects in a style: grey, on white.

The new ones have names of two words that the tiny vocabulary has ("a crown cat"), as a new word is made of known
pieces for a large tokenizer.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from janus_jax.emoji.language import article
from janus_jax.emoji.scene import Placement, Scene, relation_between
from janus_jax.emoji.world import BACKGROUNDS, World

# Name -> sprite.
NEW = {
    "crown cat": "lion face",
    "star crab": "octopus",
    "rocket car": "racing car",
    "cactus fish": "blowfish",
    "butterfly fish": "tropical fish",
    "strawberry cake": "cupcake",
}
# How a picture in the style is asked for: words that the tiny world has and never says together.
STYLE = "a grey and white picture of"
_GREY = "grey and white "
OLD = World()
_ALL = World(objects="all")
# Objects that no picture to learn the style from shows.
UNSTYLED = OLD.names[::4]


class WideWorld(World):
    """Old objects and new ones, which can be drawn grey under another name."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*OLD.names, *NEW)

    def sprite(self, name: str, tint: str | None) -> np.ndarray:
        if name in NEW:
            return _ALL.sprite(NEW[name], tint)
        if name.startswith(_GREY):
            return _greyed(self.sprite(name.removeprefix(_GREY), None))
        return OLD.sprite(name, tint)


class JudgedWorld(WideWorld):
    """What a picture may show, for the judge: grey objects are others than coloured ones."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, *(_GREY + name for name in OLD.names))


def new_scene(rng: np.random.Generator, kind: str) -> Scene:
    """A scene with a new object: "single_object", or with an old one, too: "two_object", "position"."""
    new, old = (str(rng.choice(names)) for names in (list(NEW), OLD.names))
    return _scene(rng, kind, str(rng.choice(list(BACKGROUNDS))), [new, old])


def styled_scene(rng: np.random.Generator, kind: str, names: tuple[str, ...]) -> Scene:
    """A scene in the style, with one or two of the old objects `names`."""
    one, other = rng.choice(len(names), 2, replace=False)
    return in_style(_scene(rng, kind, "white", [names[one], names[other]]))


def in_style(scene: Scene) -> Scene:
    """A scene's objects in the style."""
    grey = [dataclasses.replace(p, name=_GREY + p.name, tint=None) for p in scene.placements]
    return dataclasses.replace(scene, background="white", placements=tuple(grey))


def styled_caption(scene: Scene) -> str:
    """What asks for a scene in the style, e.g. "a grey and white picture of a dog and a cat"."""
    things = [article(p.name.removeprefix(_GREY)) for p in scene.placements]
    return f"{STYLE} {' and '.join(things)}"


def _scene(rng: np.random.Generator, kind: str, background: str, names: list[str]) -> Scene:
    count = 1 if kind == "single_object" else 2
    while True:
        cells = [divmod(int(i), OLD.grid) for i in rng.permutation(OLD.grid**2)[:count]]
        relation = relation_between(*cells) if kind == "position" else None
        if kind != "position" or relation:
            break
    placed = zip(names[:count], cells, strict=True)
    return Scene(kind, background, tuple(Placement(n, None, *cell) for n, cell in placed), relation)


def _greyed(sprite: np.ndarray) -> np.ndarray:
    """A sprite, float32 [cell, cell, 4], without its colours."""
    light = sprite[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.concatenate([np.repeat(light[..., None], 3, axis=-1), sprite[..., 3:]], axis=-1)
