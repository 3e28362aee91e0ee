"""Our prompts and scores beside those of VLMEvalKit and lmms-eval, on generated questions and answers.

    python -m benchmarks.evaluation.scores_against_packages WHEELS --out scores.json

WHEELS is as for `parsers_against_packages`; pandas is needed, which both packages use. The questions are tables in
VLMEvalKit's columns; it is given our exported predictions, as `--mode eval` would be. Answers that its release
reads otherwise than the repository ("answer is X"), and those that pandas reads as nothing, are not among them.
Where a number of a package is not compared, it is said why in `vlmevalkit_functions` or `made_tables`. With a
number that differs by more than 1e-9, or a prompt that differs at all, the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.evaluation.lmms_eval_functions import lmms_prompts, lmms_scores
from benchmarks.evaluation.made_answers import make_answers
from benchmarks.evaluation.made_tables import write_tables
from benchmarks.evaluation.packages import of_wheel
from benchmarks.evaluation.vlmevalkit_functions import vlmevalkit_prompts, vlmevalkit_scores
from janus_jax.evaluation.understanding import (
    BENCHMARK_FACTS,
    Item,
    Prompt,
    get_protocol,
    make_prompt,
    open_benchmark,
    score_answers,
    write_predictions,
)
from janus_jax.evaluation.understanding.literals import NOTHING
from janus_jax.files import write_json

_SHOWN = 3
# Package -> (protocol, what makes prompts, what makes scores).
_PACKAGES: dict[str, tuple[str, Callable, Callable]] = {
    "ms_vlmeval": ("vlmevalkit", vlmevalkit_prompts, vlmevalkit_scores),
    "lmms_eval": ("lmms-eval", lmms_prompts, lmms_scores),
}


def answers_to(items: Iterable[Item], seed: int = 0) -> dict[str, str]:
    """Half of them true, the others in all styles."""
    made = [
        m.answer
        for m in make_answers(8000, seed)
        if "answer is" not in m.answer.lower()
        and m.answer.strip() not in NOTHING
        and not re.search("[\x00-\x08\x0b-\x1f\ud800-\udfff]", m.answer)
    ]
    draw = random.Random(seed)
    return {item.index: item.answer if draw.random() < 0.5 else draw.choice(made) for item in items}


def grade_of(answer: str) -> float:
    """A grade in place of a judge's, that depends on the answer alone."""
    return len(answer) % 11 / 10


def compare(name: str, package: str, read: Callable[[str], str], table: Path) -> dict[str, Any]:
    protocol_name, prompts, scores = _PACKAGES[package]
    protocol = get_protocol(protocol_name, name)
    items = list(open_benchmark(name, table))
    answers = answers_to(items)
    ours = {item.index: _asked(make_prompt(item, protocol)) for item in items}
    theirs = prompts(read, name, items, table)
    other = [index for index, text in theirs.items() if ours[index] != text]
    grade = lambda question, truth, answer: grade_of(answer)
    found = score_answers(items, answers, protocol, grade=grade)
    predictions = write_predictions(table.parent, "made", name, items, answers)
    with contextlib.redirect_stdout(io.StringIO()):  # the packages print their tables
        expected = scores(read, name, items, answers, predictions, table, grade_of)
    numbers = {cell: _number(found.tables, cell) for cell in expected}
    unlike = {
        "/".join(cell): [value, numbers[cell]]
        for cell, value in expected.items()
        if numbers[cell] is None or abs(value - numbers[cell]) > 1e-9
    }
    print(
        f"{package:11} {name:8} {len(theirs)} prompts, {len(other)} differ; {len(expected)} numbers, "
        f"{len(unlike)} differ"
    )
    return {
        "questions": len(items),
        "prompts": len(theirs),
        "prompts_differ": len(other),
        "prompt_examples": [[theirs[index], ours[index]] for index in other[:_SHOWN]],
        "numbers": len(expected),
        "numbers_differ": len(unlike),
        "number_examples": dict(list(unlike.items())[:_SHOWN]),
        "headline": found.headline,
        "read": dict(collections.Counter(verdict.how for verdict in found.verdicts)),
    }


def _asked(prompt: Prompt) -> str:
    return "".join(prompt.turn)


def _number(tables: dict[str, Any], cell: tuple[str, str, str]) -> float | None:
    name, row, column = cell
    return tables.get(name, {}).get(row, {}).get(column)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--questions", type=int, default=1000, help="of each benchmark, about")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        tables = write_tables(Path(folder), args.questions)
        for package in _PACKAGES:
            wheel, read = of_wheel(args.wheels, package)
            record[wheel] = {
                name: compare(name, package, read, tables[name]) for name in BENCHMARK_FACTS
            }
    if args.out:
        write_json(args.out, record)
    rows = [row for of in record.values() for row in of.values()]
    if any(row["prompts_differ"] or row["numbers_differ"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
