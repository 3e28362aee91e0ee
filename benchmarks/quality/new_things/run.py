"""Tunes a tiny model on new objects and on a new style by several recipes; scores what is new and what is old.

    python train.py --config benchmarks/quality/new_things/base.py --workdir runs/base       # some 15 minutes
    python -m benchmarks.quality.new_things.run --base runs/base --out runs/new_things

Everything goes through files, as with data of one's own: pictures, captions, conversations and a manifest are
written to OUT/data, `train.py` makes the runs OUT/WHAT/ARM, and the finished checkpoints are loaded and scored.
OUT gets `scores.json`, a table in `scores.md`, and the same prompts drawn by all of them in `objects.png` and
`style.png`. A run or a score that is there is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.paths import ROOT
from benchmarks.quality.new_things.files import KINDS, write_data
from benchmarks.quality.new_things.scores import ceilings, object_scores, old_scores, style_scores
from janus_jax import Janus
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.files import atomic_write, read_json, write_json

_STAGE = "config.stages.finetune"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to tune: a variant of `configs/finetune.py`, its manifest, and flags."""

    variant: str
    manifest: str = "mixture"
    flags: tuple[str, ...] = ()


ARMS = {
    "full": Arm("full_tiny"),
    "lora": Arm("lora_tiny"),
    "generation": Arm("generation_tiny"),
    "lora, nothing old": Arm("lora_tiny", "alone", (f"--{_STAGE}.ratio=(1.0, 0.0, 1.0)",)),
    "full, nothing old": Arm("full_tiny", "alone", (f"--{_STAGE}.ratio=(1.0, 0.0, 1.0)",)),
    "full, only drawing": Arm("full_tiny", "alone", (f"--{_STAGE}.ratio=(0.0, 0.0, 1.0)",)),
}
SHOWN = {
    "objects": (
        "a crown cat",
        "a star crab and a dog",
        "a rocket car left of a house",
        "a cactus fish",
        "a butterfly fish above an apple",
        "a strawberry cake",
        "a red dog",
        "three cats",
        "a cat and a crown",
    ),
    "style": (
        "a grey and white picture of a cat",
        "a grey and white picture of a dog",
        "a grey and white picture of an owl and a house",
        "a grey and white picture of a car",
        "a picture of a cat",
        "a red dog",
        "three cats",
        "a star on a grey background",
    ),
}
_TILE, _LABEL, _WIDE = 96, 26, 250


def tune(
    base: Path, manifest: Path, arm: Arm, run: Path, steps: int, extra: Sequence[str]
) -> float:
    """Makes a run, unless it is finished; returns the seconds of its training."""
    if not (run / "scores.json").exists():
        command = [
            sys.executable,
            "train.py",
            f"--config=finetune:{arm.variant}",
            f"--config.init_from={base}",
            f"--config.data.manifest={manifest}",
            f"--{_STAGE}.steps={steps}",
            *arm.flags,
            *extra,
            f"--workdir={run}",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return read_json(run / "scores.json")["finetune"]["train_seconds"]


def scored(model: Path, what: str, count: int) -> dict[str, Any]:
    """Old and new scores of a checkpoint."""
    janus = Janus.load(model)
    new = object_scores if what == "objects" else style_scores
    return {"new": new(janus, count), "old": old_scores(janus, count)}


def table(found: dict[str, Any]) -> str:
    """Scores as Markdown: what is new, what is old, and the change of each."""
    lines = []
    for what, entry in found.items():
        before = entry["arms"]["before"]
        columns = [(part, name) for part in ("new", "old") for name in before[part]]
        lines += [
            f"## {what}: {entry['pictures']} pictures, {entry['steps']} steps",
            "",
            f"Through the image tokenizer, true pictures are right {entry['ceiling']:.2f} of the time.",
            "",
            "| | " + " | ".join(f"{part}: {name}" for part, name in columns) + " |",
            "|" + " --- |" * (len(columns) + 1),
        ]
        for arm, scores in entry["arms"].items():
            cells = [f"{scores[part][name]:.2f}" for part, name in columns]
            if arm != "before":
                change = [scores[part][name] - before[part][name] for part, name in columns]
                cells = [f"{cell} ({by:+.2f})" for cell, by in zip(cells, change, strict=True)]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def sheet(prompts: Sequence[str], columns: dict[str, np.ndarray]) -> Image.Image:
    """Prompts down, models across."""
    width, height = _WIDE + len(columns) * (_TILE + 4), _LABEL + len(prompts) * (_TILE + 4)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    for row, prompt in enumerate(prompts):
        pen.text(
            (6, _LABEL + row * (_TILE + 4) + _TILE // 2 - 6), prompt, fill="black", font_size=12
        )
    for column, (name, drawn) in enumerate(columns.items()):
        x = _WIDE + column * (_TILE + 4)
        pen.text((x, 6), name, fill="black", font_size=11)
        for row, tile in enumerate(drawn):
            large = Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.NEAREST)
            picture.paste(large, (x, _LABEL + row * (_TILE + 4)))
    return picture


def compare(args: argparse.Namespace, what: str, found: dict[str, Any]) -> None:
    """Everything of objects or of the style."""
    directory = args.out / what
    manifests = write_data(
        args.out / "data" / what, what, args.pictures, args.old, args.old_drawing
    )
    entry = found.setdefault(what, {})
    entry |= {
        "pictures": args.pictures,
        "old_records": args.old,
        "old_drawing": args.old_drawing,
        "steps": args.steps,
    }
    arms, columns = entry.setdefault("arms", {}), {}
    runs = {arm: directory / arm.replace(", ", "_").replace(" ", "_") for arm in args.arms}
    models = {"before": args.base, **runs}
    for arm, model in models.items():
        began = time.perf_counter()
        if arm in ARMS:
            manifest = manifests[ARMS[arm].manifest]
            seconds = tune(args.base, manifest, ARMS[arm], model, args.steps, args.flags)
        if arm not in arms:
            arms[arm] = scored(model, what, args.count)
            if arm in ARMS:
                arms[arm]["train_seconds"] = round(seconds, 1)
        janus = Janus.load(model)
        if "ceiling" not in entry:
            entry["ceiling"] = ceilings(functools.partial(_through, janus), args.count)[what]
        columns[arm] = janus.generate_arrays(list(SHOWN[what]), seed=1)
        write_json(args.out / "scores.json", found)
        atomic_write(args.out / "scores.md", table(found))
        print(
            f"{what}, {arm}: {arms[arm]} ({time.perf_counter() - began:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    temporary = args.out / f"{what}.tmp"
    sheet(SHOWN[what], columns).save(temporary, format="PNG")
    temporary.rename(args.out / f"{what}.png")


def _through(janus: Janus, pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [B, h, w, 3] through the image tokenizer."""
    return janus.decode_codes_arrays(janus.encode_image([Image.fromarray(x) for x in pictures]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="finished run of base.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--what", default="objects,style")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by ;")
    parser.add_argument("--pictures", type=int, default=120, help="that show what is new")
    parser.add_argument("--old", type=int, default=2400, help="old records of each kind")
    parser.add_argument("--old_drawing", type=float, default=2.0, help="old drawn for each new one")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--count", type=int, default=50, help="pictures and questions of each kind")
    parser.add_argument("--again", action="store_true", help="removes what is in OUT first")
    parser.add_argument("flags", nargs="*", help="more flags of train.py, after --")
    args = parser.parse_args()
    args.arms = [arm for arm in args.arms.split(";") if arm]
    if unknown := [arm for arm in args.arms if arm not in ARMS]:
        raise UserError(f"--arms: {unknown[0]!r} is none of {'; '.join(ARMS)}")
    if unknown := [what for what in args.what.split(",") if what not in KINDS]:
        raise UserError(f"--what: {unknown[0]!r} is none of {', '.join(KINDS)}")
    if args.again:
        shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    scores = args.out / "scores.json"
    found = read_json(scores) if scores.exists() else {}
    for what in args.what.split(","):
        compare(args, what, found)
    print(table(found), end="")


if __name__ == "__main__":
    run_main(main)
