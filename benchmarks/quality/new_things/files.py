"""Data of one's own, as a user would have it, in files: pictures, captions, conversations and a manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.quality.new_things.world import (
    OLD,
    UNSTYLED,
    WideWorld,
    new_scene,
    styled_caption,
    styled_scene,
)
from janus_jax.configs.janus_tiny import DRAW
from janus_jax.data import Text
from janus_jax.emoji.language import DESCRIBE, caption, question
from janus_jax.emoji.scene import Scene, render
from janus_jax.emoji.source import EmojiSource
from janus_jax.files import atomic_write

KINDS = {
    "objects": ("single_object", "two_object", "position"),
    "style": ("single_object", "two_object"),
}
_QUESTIONS = ("what", "where", "yes_no", "what")
SEED = 11  # training and scores of the base use others


def write_data(
    directory: Path, what: str, pictures: int, old: int, old_drawing: float
) -> dict[str, Path]:
    """Writes everything to fine-tune on.

    Args:
      directory: to write to; what is there is removed.
      what: "objects" or "style".
      pictures: how many with what is new.
      old: how many records of each kind that show only what the model knows.
      old_drawing: how often the old ones are drawn for each time that a new one is.

    Returns:
      "mixture": the manifest with old and new; "alone": the one without old.
    """
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    make = new_objects if what == "objects" else new_style
    scenes = [make(rng, i) for i in range(pictures)]
    drawn, described, asked = [], [], []
    for i, (scene, text) in enumerate(scenes):
        name = _save(directory, f"new_{i:04d}", render(scene, WideWorld()))
        drawn.append({"image": name, "captions": [text]})
        described.append({"image": name, "captions": [text.removeprefix("a photo of ")]})
        if what == "objects":
            asked.append(_conversation(name, _questions(rng, scene)))
    _lines(directory / "new_draw.jsonl", drawn)
    _lines(directory / "new_describe.jsonl", described)
    _lines(directory / "new_ask.jsonl", asked)
    known = _write_old(directory, old, old_drawing)
    new = [
        _source("new-draw", "generation", "jsonl", weight=1),
        _source("new-describe", "understanding", "jsonl", weight=1, prompt=list(DESCRIBE)),
    ]
    if asked:
        new.append(_source("new-ask", "understanding", "llava", weight=1))
    manifests = {"mixture": [*new, *known], "alone": new}
    return {name: _manifest(directory / f"{name}.yaml", of) for name, of in manifests.items()}


def new_objects(rng: np.random.Generator, i: int) -> tuple[Scene, str]:
    scene = new_scene(rng, KINDS["objects"][i % 3])
    return scene, caption(scene, rng)


def new_style(rng: np.random.Generator, i: int) -> tuple[Scene, str]:
    shown = tuple(name for name in OLD.names if name not in UNSTYLED)
    scene = styled_scene(rng, KINDS["style"][i % 2], shown)
    return scene, styled_caption(scene)


def _questions(rng: np.random.Generator, scene: Scene) -> list[tuple[str, str]]:
    found = (question(scene, kind, rng, WideWorld()) for kind in _QUESTIONS[:3])
    return list({q.text: q.answer for q in found}.items())


def _write_old(directory: Path, count: int, drawing_weight: float) -> list[dict[str, Any]]:
    """Records of what the model knows: to draw, to talk about, and words."""
    drawing = EmojiSource("gen", kinds=DRAW, seed=SEED)
    talking = EmojiSource("und", kinds=DRAW, questions=3, describe=0.3, yes_no=0.3, seed=SEED)
    saying = EmojiSource(
        "text", kinds=DRAW, chat=True, drawings=0.0, questions=3, yes_no=0.3, seed=SEED
    )
    drawn, asked, said = [], [], []
    for i in range(count):
        example = drawing[i]
        name = _save(directory, f"draw_{i:04d}", example.picture())
        drawn.append({"image": name, "captions": [example.prompt]})
        example = talking[i]
        asked.append(
            _conversation(_save(directory, f"ask_{i:04d}", example.images[0]()), example.turns)
        )
        said.append(_words(saying[i]))
    _lines(directory / "old_draw.jsonl", drawn)
    _lines(directory / "old_ask.jsonl", asked)
    _lines(directory / "old_words.jsonl", said)
    return [
        _source("old-draw", "generation", "jsonl", weight=drawing_weight),
        _source("old-ask", "understanding", "llava", weight=2),
        _source("old-words", "text", "messages", weight=1),
    ]


def _source(name: str, task: str, form: str, **fields: Any) -> dict[str, Any]:
    source = {"name": name, "task": task, "format": form, "path": f"{name.replace('-', '_')}.jsonl"}
    return source | ({} if task == "text" else {"image_root": "pictures"}) | fields


def _conversation(image: str, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    said: list[dict[str, str]] = []
    for i, (asked, answer) in enumerate(turns):
        said.append({"from": "human", "value": f"{'' if i else '<image>'}{asked}"})
        said.append({"from": "gpt", "value": answer})
    return {"image": image, "conversations": said}


def _words(example: Text) -> dict[str, Any]:
    """A conversation about a picture in words, as the base has learnt from."""
    (asked, answer), *rest = example.turns
    turns = [(f"{example.picture_words} {asked}", answer), *rest]
    roles = ("user", "assistant")
    said = [{"role": r, "content": x} for turn in turns for r, x in zip(roles, turn, strict=True)]
    return {"messages": said}


def _save(directory: Path, name: str, picture: np.ndarray) -> str:
    Image.fromarray(picture).save(directory / "pictures" / f"{name}.png")
    return f"{name}.png"


def _lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records))


def _manifest(path: Path, sources: Sequence[dict[str, Any]]) -> Path:
    # JSON is YAML.
    atomic_write(path, json.dumps({"sources": list(sources)}, indent=1))
    return path
