"""How many questions a second a benchmark is asked at, in batches and one by one.

    python -m benchmarks.evaluation.asking --checkpoint runs/janus_tiny --questions 256 --batch_sizes 1,4,16,64

The questions are yes/no ones about pictures of the built-in world, in a table as VLMEvalKit's POPE has it, under
the protocol lmms-eval, whose answers have 128 tokens at most. Each size is run once to compile and once to
measure; reading the pictures from the table is part of it.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import tempfile
import time
from pathlib import Path

from PIL import Image

from janus_jax.emoji.questions import make_questions
from janus_jax.emoji.world import World
from janus_jax.errors import UserError, run_main
from janus_jax.evaluation import ModelPredictor
from janus_jax.evaluation.asking import ask, make_task
from janus_jax.evaluation.understanding import get_protocol, open_benchmark
from janus_jax.inference import Janus, enable_compilation_cache


def write_table(path: Path, count: int, size: int) -> None:
    """A POPE.tsv of `count` questions about pictures of `size` pixels a side."""
    world = World(image_size=48, grid=3, objects="tiny")
    pictures, questions = make_questions(world, "yes_no", count)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "image", "question", "answer", "category"])
        for i, (picture, question) in enumerate(zip(pictures, questions, strict=True)):
            encoded = io.BytesIO()
            Image.fromarray(picture).resize((size, size)).save(encoded, "PNG")
            image = base64.b64encode(encoded.getvalue()).decode()
            answer = question.answer.strip(".").title()
            writer.writerow([i, image, question.text, answer, "random"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="runs/janus_tiny")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--batch_sizes", default="1,4,16,64")
    flags = parser.parse_args()
    try:
        sizes = [int(size) for size in flags.batch_sizes.split(",")]
    except ValueError as error:
        raise UserError("--batch_sizes must be whole numbers with commas between") from error
    enable_compilation_cache()
    janus = Janus.load(flags.checkpoint)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "POPE.tsv")
        write_table(path, flags.questions, max(janus.processor.config.und_image_size, 64))
        task = make_task(open_benchmark("pope", path), get_protocol("lmms-eval", "pope"))
        print(f"{janus}, {len(task.items)} questions")
        answers: dict[str, str] = {}
        for size in sizes:
            found: dict[str, str] = {}

            def add(lines: list[dict[str, str]], found: dict[str, str] = found) -> None:
                found.update({line["index"]: line.get("answer", "") for line in lines})

            for _ in range(2):
                began = time.perf_counter()
                ask(ModelPredictor(janus), task, {}, size, add)
                seconds = time.perf_counter() - began
            answers = answers or found
            same = sum(found[index] == answers[index] for index in found)
            letters = sum(map(len, found.values())) / len(found)
            print(
                f"batch {size:3}: {len(found) / seconds:7.1f} questions/s, {same} of {len(found)} "
                f"answers as in the first size, {letters:.1f} letters each"
            )


if __name__ == "__main__":
    run_main(main)
