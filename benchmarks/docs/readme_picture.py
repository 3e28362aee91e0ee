"""Draws the README's picture: one tile per prompt, the prompt under it.

python -m benchmarks.docs.readme_picture --checkpoint runs/janus_tiny --out docs/images/samples.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from janus_jax import Janus
from janus_jax.errors import run_main

PROMPTS = (
    "a panda",
    "a photo of three apples",
    "a red car",
    "a cat and a rocket",
    "a purple pig",
    "four butterflies",
    "a bus above a house",
    "a crown left of a frog",
    "a blue guitar and a yellow fish",
    "two penguins on a pink background",
    "a pizza right of an owl",
    "a green star and a red key",
)
TILE, LABEL, COLUMNS = 144, 20, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="runs/janus_tiny")
    parser.add_argument("--out", type=Path, default=Path("docs/images/samples.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg_weight", type=float, help="default: the checkpoint's own")
    args = parser.parse_args()
    pictures = Janus.load(args.checkpoint).generate(
        list(PROMPTS), seed=args.seed, cfg_weight=args.cfg_weight
    )
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE + 8), rows * (TILE + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        x, y = i % COLUMNS * (TILE + 8) + 4, i // COLUMNS * (TILE + LABEL)
        sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + TILE + 3), prompt, fill="black", font_size=9)
    temporary = args.out.with_suffix(".tmp")
    sheet.save(temporary, format="PNG")
    temporary.rename(args.out)


if __name__ == "__main__":
    run_main(main)
