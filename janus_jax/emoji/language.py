"""What can be said about a scene: captions, questions with answers, and plain text.

Every wording is listed here, so the vocabulary of the tiny model is exactly what these functions can
emit. All text is lower case.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import numpy as np

from janus_jax.emoji.scene import OPPOSITE, RELATIONS, Scene, relation_between
from janus_jax.emoji.world import BACKGROUNDS, TINTS, World, article, plural

NUMBERS = ("zero", "one", "two", "three", "four")
QUESTION_KINDS = ("what", "how_many", "colour", "where", "relation", "yes_no", "background")
# Kinds of scenes that can be asked each kind of question.
SCENES_OF_QUESTION = {
    "what": ("single_object", "two_object", "counting", "colors"),
    "how_many": ("counting", "counting", "counting", "two_object"),
    "colour": ("colors", "color_attr"),
    "where": ("single_object", "colors", "two_object", "color_attr", "position"),
    "relation": ("position",),
    "yes_no": ("single_object", "two_object", "counting", "colors", "position", "color_attr"),
    "background": ("single_object", "two_object", "counting", "colors"),
}
DESCRIBE = ("describe the picture.", "what does the picture show?")
DESCRIBE_IN_DETAIL = ("describe the picture in detail.", "what is where in the picture?")
_PREFIXES = ("", "a photo of ", "a picture of ")
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")


@dataclasses.dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def thing(name: str, tint: str | None) -> str:
    """ "apple" or "red apple", without an article."""
    return f"{tint} {name}" if tint else name


def place(row: int, column: int, grid: int) -> str:
    """Words for a cell: "top left", "top", "centre", ... by thirds of the picture."""

    def third(i: int) -> int:
        return min(2, (2 * i + 1) * 3 // (2 * grid))

    words = f"{_ROWS[third(row)]} {_COLUMNS[third(column)]}".strip()
    return words or "centre"


def caption(scene: Scene, rng: np.random.Generator, background: float = 0.25) -> str:
    """One wording of the scene; with probability `background` it names the background, too."""
    first, *rest = scene.placements
    one = article(thing(first.name, first.tint))
    if scene.kind == "counting":
        text = f"{NUMBERS[len(scene.placements)]} {plural(first.name)}"
    elif scene.kind in ("single_object", "colors"):
        options = [one, one, f"one {thing(first.name, first.tint)}"]
        if first.tint:
            options.append(f"{article(first.name)} that is {first.tint}")
        text = _choose(rng, options)
    elif scene.kind == "position":
        other = article(thing(rest[0].name, rest[0].tint))
        relation = scene.relation
        if rng.random() < 0.5:
            one, other, relation = other, one, OPPOSITE[relation]
        if relation in ("left of", "right of") and rng.random() < 0.3:
            relation = f"to the {relation}"
        text = f"{one} {relation} {other}"
    elif scene.kind in ("mixed", "dense"):
        text = _inventory(scene)
    else:
        other = article(thing(rest[0].name, rest[0].tint))
        if rng.random() < 0.5:
            one, other = other, one
        text = f"{one} {_choose(rng, ['and', 'and', 'with'])} {other}"
    text = _choose(rng, _PREFIXES) + text
    if rng.random() < background:
        text += f" on {article(scene.background)} background"
    return text


def question(
    scene: Scene, kind: str, rng: np.random.Generator, world: World, asked: Collection[str] = ()
) -> Question:
    """A question of `kind` about a scene of one of `SCENES_OF_QUESTION[kind]`, with its only right answer.

    `asked` are absent objects that the same conversation already asked for.
    """
    p = scene.placements[int(rng.integers(len(scene.placements)))]
    if kind == "what":
        text = _choose(rng, ["what is in the picture?", "what can you see?"])
        return Question(kind, text, _inventory(scene))
    if kind == "how_many":
        count = NUMBERS[sum(q.name == p.name for q in scene.placements)]
        return Question(kind, f"how many {plural(p.name)} are there?", count)
    if kind == "colour":
        text = _choose(rng, [f"which colour is the {p.name}?", f"what colour is the {p.name}?"])
        return Question(kind, text, p.tint)
    if kind == "where":
        return Question(kind, f"where is the {p.name}?", place(p.row, p.column, world.grid))
    if kind == "relation":
        a, b = scene.placements
        relation = scene.relation
        if rng.random() < 0.5:
            a, b, relation = b, a, OPPOSITE[relation]
        return Question(kind, f"what is {relation} the {b.name}?", article(a.name))
    if kind == "background":
        return Question(kind, "which colour is the background?", scene.background)
    if kind == "yes_no":
        present = {q.name for q in scene.placements}
        if rng.random() < 0.5:
            return Question(kind, f"is there {article(p.name)}?", "yes")
        # Nothing is asked that makes a held-out pair: always "no", it would teach that the pair cannot be.
        absent = [
            n
            for n in world.names
            if n not in present
            and not any(world.is_held_out_pair(n, q) for q in (*present, *asked))
        ]
        return Question(kind, f"is there {article(_choose(rng, absent))}?", "no")
    raise ValueError(f"unknown kind of question {kind!r}")


def detailed_caption(scene: Scene, world: World) -> str:
    """All that is in the scene: each object with its place, in reading order, and the background."""
    parts = [
        f"{article(thing(p.name, p.tint))} {place(p.row, p.column, world.grid)}"
        for p in sorted(scene.placements, key=lambda p: (p.row, p.column))
    ]
    return f"{' and '.join(parts)} on {article(scene.background)} background"


def description(scene: Scene, world: World) -> str:
    """`detailed_caption` as a sentence."""
    return f"there is {detailed_caption(scene, world)}."


def picture_in_words(scene: Scene, world: World) -> str:
    """What each cell shows, in reading order: "pink pink red cat pink ..."; an empty one its background.

    To a text it is what the patches of a picture are: what is learnt from it about captions and questions
    needs only new words when pictures come.
    """
    return " ".join(word for row in _cells(scene, world) for cell in row for word in cell)


def drawing_in_words(scene: Scene, world: World) -> str:
    """Twice as many words each way as there are cells: "pink pink red cat ... pink pink red cat ...".

    To a text it is what the codes of a picture are: one word for each, row by row.
    """
    lines = []
    for row in _cells(scene, world):
        line = [word for cell in row for word in (cell * 2)[:2]]
        lines += [*line, *line]
    return " ".join(lines)


def fact(scene: Scene, rng: np.random.Generator, world: World) -> str:
    """Plain text about the same world, no picture: a scene described and as a picture in words, either one
    first, or one of them with a question and its answer."""
    both = [description(scene, world), f"picture: {picture_in_words(scene, world)}."]
    if rng.random() < 0.5:
        both.reverse()
    if scene.kind in ("mixed", "dense"):
        return " ".join(both)
    if rng.random() < 0.4:
        return f"{caption(scene, rng)}. picture: {picture_in_words(scene, world)}."
    kind = _choose(rng, [k for k in QUESTION_KINDS if scene.kind in SCENES_OF_QUESTION[k]])
    asked = question(scene, kind, rng, world)
    return f"{both[0]} {asked.text} {asked.answer}."


@functools.cache
def vocabulary(world: World) -> tuple[str, ...]:
    """Every word and punctuation mark that can occur, sorted: the tiny model's word list."""
    templates = (
        "a an one photo picture of with and that is on background to the . , ? : zero "
        "what which where how many are there can you see in colour does show describe yes no not "
        "there detail centre middle top bottom left right above below it"
    )
    words = set(templates.split()) | set(NUMBERS) | set(TINTS) | set(BACKGROUNDS)
    for name in world.names:
        words |= set(name.split()) | set(plural(name).split())
    return tuple(sorted(words))


def _choose(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _inventory(scene: Scene) -> str:
    """What is there, in reading order, e.g. "a cat and a dog" or "three apples"."""
    if scene.kind == "counting":
        return f"{NUMBERS[len(scene.placements)]} {plural(scene.placements[0].name)}"
    ordered = sorted(scene.placements, key=lambda p: (p.row, p.column))
    return " and ".join(article(thing(p.name, p.tint)) for p in ordered)


def _cells(scene: Scene, world: World) -> list[list[list[str]]]:
    """The words of each cell, by row and column: background, object, or tint and object."""
    cells = [[[scene.background] for _ in range(world.grid)] for _ in range(world.grid)]
    for p in scene.placements:
        cells[p.row][p.column] = [p.tint, p.name] if p.tint else [p.name]
    return cells


__all__ = [
    "DESCRIBE",
    "DESCRIBE_IN_DETAIL",
    "NUMBERS",
    "QUESTION_KINDS",
    "RELATIONS",
    "SCENES_OF_QUESTION",
    "Question",
    "article",
    "caption",
    "description",
    "detailed_caption",
    "drawing_in_words",
    "fact",
    "picture_in_words",
    "place",
    "plural",
    "question",
    "relation_between",
    "thing",
    "vocabulary",
]
