"""DPG-Bench's scores, ours with `compat=True` against the official script's, on random questions and answers.

    git clone https://github.com/TencentQQGYLab/ELLA
    python -m benchmarks.evaluation.dpg_against_official ELLA/dpg_bench/compute_dpg_bench.py \
        --json benchmarks/results/dpg_against_official.json

The judge is replaced by a random one; the official script is run whole, from its CSV to the files that it writes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import sys
import tempfile
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.evaluation.official import functions_of
from janus_jax.errors import UserError, run_main
from janus_jax.evaluation.generation import (
    overall_of,
    read_answers,
    read_picture_scores,
    read_questions,
    score_answers,
)
from janus_jax.files import write_json

FUNCTIONS = "parse_args prepare_dpg_data crop_image compute_dpg_one_sample main".split()
CATEGORIES = (
    *("global -", "entity - whole", "entity - part", "attribute - color", "attribute - size"),
    *("relation - spatial", "relation - non-spatial", "other - count"),
)
COLUMNS = (
    "item_id text keywords proposition_id dependency category_broad category_detailed tuple".split()
)


class OneProcess:
    """In place of accelerate's `Accelerator`."""

    is_main_process, num_processes, process_index, device = True, 1, 0, "cpu"

    def prepare(self, judge: Any) -> Any:
        return judge

    def wait_for_everyone(self) -> None:
        pass


class RandomJudge:
    """Answers of all kinds, also such as are nearly "yes"; `sure` is how often it is."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._sure = rng.choice((0.3, 0.7, 0.95))

    def vqa(self, image: Image.Image, question: str) -> str:
        if self._rng.random() < self._sure:
            return "yes"
        return self._rng.choice(("no", "no", "Yes", "yes it is", "2"))


def random_questions(rng: random.Random, path: Path) -> list[str]:
    """Writes a CSV with all that the quirks are about; returns the names of its prompts."""
    names = [f"item{i}" for i in range(rng.randint(2, 8))]
    rows = []
    for name in names:
        numbers = list(range(1, rng.randint(2, 9)))
        for number in numbers:
            parents = rng.sample(numbers, rng.choice((0, 0, 1, 1, 2)) % (len(numbers) + 1))
            depends = ",".join(map(str, parents)) or "0"
            category = rng.choice(CATEGORIES)
            text = rng.choice(("Is {} there?", "Is {}, the red one, there?", 'Is the "{}" there?'))
            fields = [name, "a, text", "", number, depends, "x", "y", f"{category} (thing)"]
            rows.append([*fields, text.format(number)])
        if rng.random() < 0.3:
            rng.shuffle(rows[-len(numbers) :])
    if rng.random() < 0.2:  # rows of one prompt in two places
        rows.append(rows.pop(rng.randrange(len(rows))))
    # The real column is text, as some of its values have commas; pandas would make numbers of it otherwise.
    rows.append(["last", "", "", 1, "0", "x", "y", "other - text (x)", "Is 1 there?"])
    rows.append(["last", "", "", 2, "0,1", "x", "y", "other - text (x)", "Is 2 there?"])
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "question_natural_language"])
    frame.to_csv(path, index=False)
    return [*names, "last"]


def official_run(
    script: Path, rng: random.Random, folder: Path, csv: Path, samples: int
) -> dict[str, float]:
    """Runs the official script over a folder; its summary, line by line."""
    given = {
        "argparse": argparse,
        "os": os,
        "osp": os.path,
        "time": types.SimpleNamespace(
            time=lambda: 0.0, localtime=lambda t: t, strftime=lambda f, t: "0", sleep=lambda s: None
        ),
        "defaultdict": defaultdict,
        "np": np,
        "pd": pd,
        "Image": Image,
        "tqdm": lambda things: things,
        "Accelerator": OneProcess,
        "gather_object": lambda values: values,
        "MPLUG": lambda device: RandomJudge(rng),
    }
    code = functions_of(script, FUNCTIONS, given)
    argv = ["compute_dpg_bench.py", "--image-root-path", str(folder), "--resolution", "4"]
    argv += ["--csv", str(csv), "--pic-num", str(samples), "--res-path", f"{folder}.txt"]
    before, sys.argv = sys.argv, argv
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            code.main()
    finally:
        sys.argv = before
    summary = {}
    for line in text.getvalue().splitlines():
        name, _, value = line.strip().rpartition(": ")
        with contextlib.suppress(ValueError):
            summary[name] = float(value)
    return summary


def unequal(script: Path, seed: int) -> tuple[int, int, int]:
    """(numbers compared, unequal ones, pictures that the official script gave up) of one random benchmark."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        folder, csv = Path(directory, "pictures"), Path(directory, "dpg_bench.csv")
        folder.mkdir()
        for name in random_questions(rng, csv):
            Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        official = official_run(script, rng, folder, csv, rng.choice((1, 2, 4)))
        questions = read_questions(csv, compat=True)
        answers = read_answers(f"{folder}_detail.txt", questions)
        try:
            ours = score_answers(questions, answers)
        except UserError:  # the official script scored nothing either
            return 1, int(not np.isnan(official["DPG-Bench score"])), len(answers)
        pictures = read_picture_scores(f"{folder}.txt")
    wanted = {"DPG-Bench score": ours.overall} | dict(ours.l1)
    # The script prints categories of both levels under one form; the second ones have a dash.
    wanted |= {name: value for name, value in ours.l2.items() if "-" in name}
    wrong = sum(abs(official.get(name, np.nan) - value) > 1e-9 for name, value in wanted.items())
    wrong += sum(name not in official for name in wanted)
    wrong += int(set(official) != set(wanted)) + int(pictures != ours.pictures)
    wrong += int(abs(overall_of(pictures)[0] - ours.overall) > 1e-9)
    return len(wanted) + 3, int(wrong), len(ours.dropped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("compute_dpg_bench", type=Path)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = [unequal(args.compute_dpg_bench, args.seed + i) for i in range(args.cases)]
    compared, wrong, dropped = map(sum, zip(*found, strict=True))
    result = {
        "cases": args.cases,
        "numbers_compared": compared,
        "numbers_unequal": wrong,
        "pictures_given_up_by_both": dropped,
        "compute_dpg_bench_sha256": hashlib.sha256(args.compute_dpg_bench.read_bytes()).hexdigest(),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    run_main(main)
