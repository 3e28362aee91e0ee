"""Makes examples/data again: a dozen pictures of emoji scenes, with words in four formats.

    python -m examples.make                      # into examples/data
    python -m examples.make --dir /tmp/data      # elsewhere

The same files each time, but for what another version of Pillow writes in a picture. All words are known to the
tokenizer of the tiny model, which knows nothing but such scenes.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.emoji import (
    Scene,
    World,
    caption,
    description,
    fact,
    question,
    random_scene,
    render,
)
from janus_jax.emoji.language import SCENES_OF_QUESTION
from janus_jax.files import atomic_write

DATA = Path(__file__).resolve().parent / "data"
WORLD = World(image_size=96)
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
ASKED = ("what", "how_many", "colour", "where", "relation", "background", "yes_no")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=DATA)
    make(parser.parse_args().dir)


def make(place: Path) -> None:
    """Writes all files but README.md and manifest.yaml."""
    rng = np.random.default_rng(20)
    scenes = [random_scene(rng, WORLD, kind) for kind in KINDS * 2]
    asked, captioned, drawn = scenes[:5], scenes[5:8], scenes[8:]
    records = [_asked(place, scene, number, rng) for number, scene in enumerate(asked, 1)]
    write(place / "questions.json", as_json(records))
    for index, scene in enumerate(captioned, 1):
        stem = place / "captioned" / f"{index}"
        write(stem.with_suffix(".jpg"), encoded(scene, "JPEG", quality=90))
        write(stem.with_suffix(".txt"), caption(scene, rng, background=0.5).encode() + b"\n")
    lines = []
    for index, scene in enumerate(drawn, 1):
        name = f"drawn_{index}.png"
        write(place / "pictures" / name, encoded(scene, "PNG", optimize=True))
        lines.append({"image": name, "prompt": caption(scene, rng)})
    write(place / "draw.jsonl", as_lines(lines))
    facts = [fact(random_scene(rng, WORLD, kind), rng, WORLD) for kind in KINDS * 2]
    write(place / "facts.jsonl", as_lines({"text": text} for text in facts))


def _asked(place: Path, scene: Scene, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """A LLaVA record: a request to describe the picture, and the questions that its kind of scene allows."""
    name = f"asked_{number}.png"
    write(place / "pictures" / name, encoded(scene, "PNG", optimize=True))
    turns = [("describe the picture in detail.", description(scene, WORLD))]
    for kind in ASKED:
        if scene.kind in SCENES_OF_QUESTION[kind]:
            found = question(scene, kind, rng, WORLD)
            turns.append((found.text, found.answer))
    said = []
    for position, (asked, answer) in enumerate(turns[:4]):
        marker = "" if position else "<image>\n"
        said += [{"from": "human", "value": marker + asked}, {"from": "gpt", "value": answer}]
    return {"id": number, "image": name, "conversations": said}


def encoded(scene: Scene, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(scene, WORLD)).save(file, kind, **options)
    return file.getvalue()


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def as_lines(values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


if __name__ == "__main__":
    main()
