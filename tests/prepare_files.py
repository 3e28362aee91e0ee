"""A small model and the manifest of small sources, for tests of what prepares data."""

import json

import numpy as np
import yaml
from dummies_model import CONFIG, make_processor, random_params
from PIL import Image

from janus_jax.checkpoints import save_model

SHADES = ("red", "green", "dog", "car")


def save_tiny(directory):
    """The model directory of `dummies_model`."""
    processor = make_processor()
    tokenizer = processor.tokenizer.to_json()
    save_model(directory, CONFIG, processor.config.to_dict(), tokenizer, random_params(CONFIG))
    return directory


def noise(seed, width, height):
    """Pixels that lossy coding or another resize would change: uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make_sources(directory, count=7, bad=()):
    """Writes pictures of many kinds, three sources and their manifest; returns its path.

    `bad`: indices whose picture is none.
    """
    pictures = directory / "pictures"
    pictures.mkdir(parents=True)
    drawn, seen = [], []
    for i in range(count):
        image = Image.fromarray(noise(i, 20 + 9 * (i % 5), 16 + 7 * (i % 3)))
        kinds = (("png", "RGB"), ("jpg", "RGB"), ("png", "RGBA"), ("webp", "RGB"), ("png", "L"))
        suffix, mode = kinds[i % 5]
        name = f"{i}.{suffix}"
        exif = Image.Exif()
        exif[274] = 6 if suffix == "jpg" else 1  # of a camera that was held upright
        image.convert(mode).save(pictures / name, exif=exif)
        if i in bad:
            (pictures / name).write_bytes(b"no picture")
        shade = SHADES[i % 4]
        drawn.append({"image": name, "caption": f"a {shade} cat"})
        said = [
            {"from": "human", "value": "<image>\nwhat is it ?"},
            {"from": "gpt", "value": shade},
        ]
        seen.append({"image": name, "conversations": said})
    seen[-1] = {
        "conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "no"}]
    }
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "drawn.jsonl").write_text(lines(drawn))
    (directory / "seen.jsonl").write_text(lines(seen))
    (directory / "facts.txt").write_text("a cat\n\na dog on the left\n")
    manifest = directory / "m.yaml"
    root = "pictures"
    sources = [
        dict(name="drawn", task="generation", format="jsonl", path="drawn.jsonl", image_root=root),
        dict(name="seen", task="understanding", format="llava", path="seen.jsonl", image_root=root),
        dict(name="facts", task="text", format="text", path="facts.txt", record="paragraph"),
    ]
    sources[0] |= {"weight": 3, "stages": ["stage2"]}
    sources[1] |= {"system": "is it on the left ?"}
    manifest.write_text(yaml.safe_dump({"sources": sources}))
    return manifest


def content(directory):
    """Name -> bytes of every file."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}
