"""GenEval's rules and its summary, ours against the official scripts', on random detections.

    git clone https://github.com/djghosh13/geneval
    python -m benchmarks.evaluation.geneval_against_official geneval/evaluation/evaluate_images.py \
        geneval/evaluation/summary_scores.py --json benchmarks/results/geneval_against_official.json

The detector and the classifier of colours are replaced by random ones; everything after them is the official code.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import runpy
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.evaluation.official import functions_of
from janus_jax.errors import run_main
from janus_jax.evaluation.generation import (
    COLORS,
    GENEVAL_TASKS,
    geneval_classes,
    geneval_prompts,
    make_objects,
    read_results,
    replay,
    score_results,
)
from janus_jax.evaluation.generation.rules import RELATIONS, judge
from janus_jax.files import write_json

CLASSES = geneval_classes()
NEEDED = ["COLORS", "compute_iou", "relative_position", "evaluate", "evaluate_image"]


class Official:
    """The official rules over detections that are given."""

    def __init__(self, script: Path):
        given: dict[str, Any] = {"np": np, "json": json, "classnames": CLASSES}
        given |= {"THRESHOLD": 0.3, "COUNTING_THRESHOLD": 0.9, "MAX_OBJECTS": 16}
        given |= {"NMS_THRESHOLD": 1.0, "POSITION_THRESHOLD": 0.1, "object_detector": None}
        given["Image"] = given["ImageOps"] = self
        given["inference_detector"] = lambda detector, path: self._boxes
        given["color_classification"] = lambda image, found, name: [
            self._colors[name][tuple(box.tolist())] for box, _ in found
        ]
        self._code = functions_of(script, NEEDED, given)

    def open(self, path: str) -> str:
        return path

    def exif_transpose(self, image: str) -> str:
        return image

    def __call__(self, details: dict, colors: dict, metadata: dict, name: str) -> dict[str, Any]:
        """The official line for a picture."""
        none = np.zeros((0, 5), np.float32)
        arrays = {c: np.array(boxes, np.float32).reshape(-1, 5) for c, boxes in details.items()}
        self._boxes = [arrays.get(c, none) for c in CLASSES]
        self._colors = {
            c: {tuple(box.tolist()): color for box, color in zip(arrays[c], colors[c], strict=True)}
            for c in details
        }
        return self._code.evaluate_image(name, metadata)


def random_metadata(rng: random.Random) -> dict[str, Any]:
    """Conditions with everything that they can have, also what GenEval's own prompts have not."""
    names = rng.sample(CLASSES[:6], rng.randint(1, 3))
    include = []
    for number, name in enumerate(names):
        entry: dict[str, Any] = {"class": name, "count": rng.choice((1, 1, 1, 2, 3))}
        if rng.random() < 0.4:
            entry["color"] = rng.choice(COLORS[:3])
        if number and rng.random() < 0.6:
            entry["position"] = [rng.choice(RELATIONS), rng.randrange(number)]
        include.append(entry)
    exclude = [
        {"class": rng.choice(CLASSES[:6]), "count": rng.randint(1, 4)}
        for _ in range(rng.choice((0, 0, 0, 1, 2)))
    ]
    return {
        "tag": rng.choice(GENEVAL_TASKS),
        "include": include,
        "exclude": exclude,
        "prompt": f"a photo of {' and '.join(names)} {rng.random()}",
    }


def random_detections(
    rng: random.Random, metadata: dict[str, Any]
) -> tuple[dict[str, list[list[float]]], dict[str, list[str]]]:
    """Boxes on a coarse grid, so that borders of the rules are met, of the classes asked for and of others."""
    asked = [entry["class"] for entry in metadata["include"]]
    names = [c for c in asked if rng.random() < 0.95] + rng.sample(CLASSES[:6], rng.randint(0, 2))
    reach = rng.choice((60, 400))  # how far apart: near each other, sizes decide about positions
    details: dict[str, list[list[float]]] = {}
    colors: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        count = rng.choice((1, 1, 1, 2, 2, 3, 4, 20))
        scores = rng.sample(
            [0.2, 0.3, 0.31, *np.linspace(0.32, 0.99, 90).tolist(), 0.9, 0.901], count
        )
        details[name] = []
        for score in scores:
            x, y = (rng.randrange(0, reach, rng.choice((1, 20))) for _ in range(2))
            w, h = (rng.choice((20, 40, 100, rng.randint(1, 200))) for _ in range(2))
            details[name].append([float(x), float(y), float(x + w), float(y + h), score])
        likely = next(
            (e["color"] for e in metadata["include"] if e["class"] == name and "color" in e), "red"
        )
        colors[name] = [likely if rng.random() < 0.8 else rng.choice(COLORS) for _ in scores]
    return details, colors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("evaluate_images", type=Path)
    parser.add_argument("summary_scores", type=Path)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    official, rng = Official(args.evaluate_images), random.Random(args.seed)
    own = [prompt.metadata for prompt in geneval_prompts().prompts]
    positions = [metadata for metadata in own if metadata["tag"] == "position"]
    lines, disagreements = [], []
    for number in range(args.cases):
        kind = rng.random()
        metadata = (
            random_metadata(rng) if kind < 0.5 else rng.choice(own if kind < 0.75 else positions)
        )
        details, colors = random_detections(rng, metadata)
        line = official(details, colors, metadata, f"{number}.png")
        verdict = judge(make_objects(details, colors, "case"), metadata)
        lines.append(line)
        if verdict.correct != line["correct"]:
            disagreements.append([metadata, details, colors, line["reason"], verdict.reasons])
    result = {
        "cases": args.cases,
        "official_right": sum(line["correct"] for line in lines),
        "right_by_task": dict(Counter(line["tag"] for line in lines if line["correct"])),
        "disagreements": len(disagreements),
        **_summaries(args.summary_scores, lines),
        "evaluate_images_sha256": hashlib.sha256(args.evaluate_images.read_bytes()).hexdigest(),
        "summary_scores_sha256": hashlib.sha256(args.summary_scores.read_bytes()).hexdigest(),
    }
    print(json.dumps(result, indent=1))
    for each in disagreements[:3]:
        print(each)
    if args.json:
        write_json(args.json, result)


def _summaries(script: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The official file of these results, read by us; its summary by both; its detections judged again."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "results.jsonl")
        pd.DataFrame(lines).to_json(path, orient="records", lines=True)
        argv, text = sys.argv, io.StringIO()
        sys.argv = [str(script), str(path)]
        try:
            with contextlib.redirect_stdout(text):
                runpy.run_path(str(script))
        finally:
            sys.argv = argv
        results = read_results(path)
    scores = score_results(results)
    again = replay(results)
    printed = [
        f"Total images: {scores.image_count}",
        f"Total prompts: {scores.prompt_count}",
        f"% correct images: {scores.images:.2%}",
        f"% correct prompts: {scores.prompts:.2%}",
        f"Overall score (avg. over tasks): {scores.overall:.5f}",
        *(
            f"{tag:<16} = {t.share:.2%} ({t.correct} / {t.count})"
            for tag, t in scores.tasks.items()
        ),
    ]
    found = text.getvalue().splitlines()
    return {
        "summary_lines": len(printed),
        "summary_lines_unequal": sum(line not in found for line in printed),
        "replayed": len(again),
        "replayed_unequal": sum(
            a.correct != b.correct for a, b in zip(again, results, strict=True)
        ),
    }


if __name__ == "__main__":
    run_main(main)
