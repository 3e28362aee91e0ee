"""Scenes: what is where, drawn at random by kind, and their pictures.

The six kinds are GenEval's tasks (Ghosh et al. 2023): one object, two objects, counting, colours, position,
colour attribution. Two more serve training only: "mixed" (one to four objects, some tinted) for the
understanding encoder and plain text, "dense" (most cells full) for the image tokenizer.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from janus_jax.emoji.world import BACKGROUNDS, TINTS, World

SCENE_KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TRAINING_SCENE_KINDS = (*SCENE_KINDS, "mixed", "dense")
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclasses.dataclass(frozen=True)
class Placement:
    """One sprite: its object, its tint (None: natural colours) and its cell."""

    name: str
    tint: str | None
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture's content. For "position", the first placement stands in `relation` to the second."""

    kind: str
    background: str
    placements: tuple[Placement, ...]
    relation: str | None = None


def render(scene: Scene, world: World) -> np.ndarray:
    """The scene's picture: uint8 [image_size, image_size, 3]."""
    side = world.cell
    picture = np.empty((world.image_size, world.image_size, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for p in scene.placements:
        sprite = world.sprite(p.name, p.tint)
        cell = picture[p.row * side : (p.row + 1) * side, p.column * side : (p.column + 1) * side]
        cell += sprite[..., 3:] * (sprite[..., :3] - cell)
    return (picture + 0.5).clip(0, 255).astype(np.uint8)


def relation_between(a: tuple[float, float], b: tuple[float, float]) -> str | None:
    """How cell `a` (row, column) lies to cell `b`; None on a diagonal, where no word fits alone."""
    down, right = a[0] - b[0], a[1] - b[1]
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    if abs(down) > abs(right):
        return "below" if down > 0 else "above"
    return None


def random_scene(
    rng: np.random.Generator, world: World, kind: str, held_out: bool = False
) -> Scene:
    """Draws a scene of `kind`.

    Args:
      rng: consumed; the same state gives the same scene.
      held_out: False draws only combinations that training may see; True draws only held-out object
        pairs (two_object, position), held-out tints (colors), or a held-out pair with allowed tints
        (color_attr). Kinds without a combination ignore it.
    """
    background = _choose(rng, list(BACKGROUNDS))
    if kind in ("mixed", "dense"):
        count = int(rng.integers(1, 5)) if kind == "mixed" else (3 * world.grid**2) // 4
        return Scene(kind, background, _scattered(rng, world, count))
    relation = None
    if kind in ("single_object", "counting", "colors"):
        count = int(rng.integers(2, 5)) if kind == "counting" else 1
        name, tint = _choose(rng, world.names), None
        if kind == "colors":
            name, tint = _tinted(rng, world, held_out)
        things = [(name, tint)] * count
    else:
        a, b = _pair(rng, world, held_out)
        tints = (None, None)
        if kind == "color_attr":
            tints = _two_tints(rng, world, a, b)
        things = [(a, tints[0]), (b, tints[1])]
    if kind == "position":
        cells = _cells_in_relation(rng, world.grid)
        relation = relation_between(*cells)
    else:
        flat = rng.permutation(world.grid**2)[: len(things)]
        cells = [divmod(int(i), world.grid) for i in flat]
    placements = tuple(
        Placement(name, tint, row, column)
        for (name, tint), (row, column) in zip(things, cells, strict=True)
    )
    return Scene(kind, background, placements, relation)


def _choose(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _pair(rng: np.random.Generator, world: World, held_out: bool) -> tuple[str, str]:
    if held_out:
        a, b = _choose(rng, sorted(world.held_out_pairs))
        return (a, b) if rng.random() < 0.5 else (b, a)
    while True:
        a, b = _choose(rng, world.names), _choose(rng, world.names)
        if a != b and not world.is_held_out_pair(a, b):
            return a, b


def _tinted(rng: np.random.Generator, world: World, held_out: bool) -> tuple[str, str]:
    if held_out:
        return _choose(rng, sorted(world.held_out_tints))
    while True:
        name, tint = _choose(rng, world.names), _choose(rng, list(TINTS))
        if (name, tint) not in world.held_out_tints:
            return name, tint


def _two_tints(rng: np.random.Generator, world: World, a: str, b: str) -> tuple[str, str]:
    while True:
        tints = _choose(rng, list(TINTS)), _choose(rng, list(TINTS))
        allowed = {(a, tints[0]), (b, tints[1])}.isdisjoint(world.held_out_tints)
        if tints[0] != tints[1] and allowed:
            return tints


def _cells_in_relation(rng: np.random.Generator, grid: int) -> list[tuple[int, int]]:
    while True:
        cells = [divmod(int(i), grid) for i in rng.permutation(grid**2)[:2]]
        if relation_between(*cells) is not None:
            return cells


def _scattered(rng: np.random.Generator, world: World, count: int) -> tuple[Placement, ...]:
    """Up to `count` objects, half of them tinted; one that would make a held-out pair is left out."""
    placements: list[Placement] = []
    for cell in rng.permutation(world.grid**2)[:count]:
        if rng.random() < 0.5:
            name, tint = _tinted(rng, world, held_out=False)
        else:
            name, tint = _choose(rng, world.names), None
        if not any(world.is_held_out_pair(name, p.name) for p in placements):
            placements.append(Placement(name, tint, *divmod(int(cell), world.grid)))
    return tuple(placements)
