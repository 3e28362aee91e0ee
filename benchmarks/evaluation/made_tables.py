"""Tables of VLMEvalKit with questions that nobody asked, made from a seed: for comparing prompts and scores."""

from __future__ import annotations

import base64
import csv
import io
import random
from pathlib import Path

from PIL import Image

from benchmarks.evaluation.made_answers import make_answers
from janus_jax.evaluation.understanding import BENCHMARK_FACTS
from janus_jax.evaluation.understanding.benchmarks import (
    COGNITION,
    MMMU_DISCIPLINE_OF,
    MMVET_ABILITIES,
    PERCEPTION,
    POPE_SUBSETS,
    SEED_KINDS,
)
from janus_jax.evaluation.understanding.literals import NOTHING

_QUESTIONS = (
    *("Is there a dog in the image?", "Is it red? Please answer yes or no.", " What is it?\n"),
    *("<image 1> How much is it?", "Which of <image 2> and <image 1>?", 'He said "no" — why?'),
)


def write_tables(directory: Path, questions: int, seed: int = 0) -> dict[str, Path]:
    """Benchmark -> a table of at least so many rows, in VLMEvalKit's columns."""
    paths = {}
    for name, facts in BENCHMARK_FACTS.items():
        rows = _ROWS[name](random.Random(f"{seed}/{name}"), questions)
        for row in rows:
            row.setdefault("image", _PICTURE)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        paths[name] = directory / f"{facts.vlmevalkit}.tsv"
        with open(paths[name], "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([row.get(column, "") for column in columns] for row in rows)
    return paths


def _encoded_picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


_PICTURE = _encoded_picture()


def _options(draw: random.Random, letters: str) -> dict[str, str]:
    made = [m for m in make_answers(24, draw.randrange(10**6)) if m.options]
    texts = [text for m in made for text in m.options.values() if text not in NOTHING]
    return {letter: draw.choice(texts) for letter in letters}


def _pope(draw: random.Random, count: int) -> list[dict]:
    return [
        {
            "index": i,
            "question": draw.choice(_QUESTIONS),
            "answer": draw.choice(("Yes", "No")),
            "category": ",".join(draw.sample(POPE_SUBSETS, draw.randint(1, 3))),
        }
        for i in range(count)
    ]


def _mme(draw: random.Random, count: int) -> list[dict]:
    rows = []
    for pair in range(count // 2):
        category = draw.choice((*PERCEPTION, *COGNITION))
        for answer in ("Yes", "No"):
            row = {"index": len(rows), "question": draw.choice(_QUESTIONS), "answer": answer}
            rows.append(row | {"category": category, "image_path": f"{pair}.jpg"})
    return rows


def _mmbench(draw: random.Random, count: int) -> list[dict]:
    rows = []
    for question in range(count // 4):
        letters = "ABCD"[: draw.randint(2, 4)]
        kind = draw.randrange(6)
        for turn in range(len(letters)):
            # From 1: VLMEvalKit counts index 10^6, a rotation of 0, as no rotation.
            row = {"index": question + 1 + turn * 10**6, "question": draw.choice(_QUESTIONS)}
            row |= {"hint": draw.choice(("", "nan", "A hint.", "Two\nlines"))}
            row |= _options(draw, letters) | {"answer": draw.choice(letters), "split": "dev"}
            rows.append(row | {"category": f"kind {kind}", "l2-category": f"group {kind % 2}"})
    return rows


def _seed(draw: random.Random, count: int) -> list[dict]:
    return [
        {"index": i, "question": draw.choice(_QUESTIONS), **_options(draw, "ABCD")}
        | {"answer": draw.choice("ABCD"), "category": draw.choice(SEED_KINDS[:9])}
        for i in range(count)
    ]


def _gqa(draw: random.Random, count: int) -> list[dict]:
    answers = ("red", "yes", "T-shirt", "two dogs", "24,000")
    return [
        {"index": i, "question": draw.choice(_QUESTIONS), "answer": draw.choice(answers)}
        for i in range(count)
    ]


def _mmmu(draw: random.Random, count: int) -> list[dict]:
    rows = []
    for i in range(count):
        subject = draw.choice(list(MMMU_DISCIPLINE_OF))
        letters = "ABCDEFGHI"[: draw.choice((0, 2, 4, 4, 4, 9))]
        row = {"index": i, "id": f"validation_{subject}_{i}", "question": draw.choice(_QUESTIONS)}
        row |= _options(draw, letters) | {"image": str([_PICTURE, _PICTURE])}
        row["answer"] = draw.choice(letters or ("3.5", "Paris", "B", "['4', 'four']"))
        group = MMMU_DISCIPLINE_OF[subject]
        rows.append(row | {"category": subject, "l2-category": group, "split": "validation"})
    return rows


def _mmvet(draw: random.Random, count: int) -> list[dict]:
    return [
        {
            "index": i,
            "question": draw.choice(_QUESTIONS),
            "answer": draw.choice(("7", "-1<AND>-5", "a<OR>b")),
            "category": ",".join(draw.sample(MMVET_ABILITIES, draw.randint(1, 4))),
        }
        for i in range(count)
    ]


_ROWS = {
    "pope": _pope,
    "mme": _mme,
    "mmbench": _mmbench,
    "seed": _seed,
    "gqa": _gqa,
    "mmmu": _mmmu,
    "mmvet": _mmvet,
}
