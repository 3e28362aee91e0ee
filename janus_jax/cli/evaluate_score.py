"""Reads what a scorer of drawn pictures wrote, and adds it up as the official summaries do.

  python -m janus_jax.evaluation score geneval results.jsonl --model Janus-Pro-1B --out results/geneval
  python -m janus_jax.evaluation score geneval found.jsonl --replay
  python -m janus_jax.evaluation score dpg --questions dpg_bench.csv --answers results_detail.txt --compat

geneval reads the results.jsonl of GenEval's evaluate_images.py, or what `... detect` wrote; --replay applies
GenEval's rules once more to the detections in it. dpg reads the ..._detail.txt of DPG-Bench's script; --compat
adds up with the quirks of that script, which published numbers have. With --out, scores.json is written there, for
`... table`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_jax.cli.parser import Parser
from janus_jax.console import printable
from janus_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from janus_jax.evaluation.results import Number

_BENCHMARKS = ("geneval", "dpg")


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__, "score")
    add = parser.add_argument
    add("benchmark", metavar="geneval|dpg", help="which")
    add("results", nargs="?", metavar="RESULTS", help="of geneval: results.jsonl")
    add("--replay", action="store_true", help="geneval's rules over the detections in RESULTS")
    add("--questions", metavar="CSV", help="of dpg: dpg_bench.csv")
    add("--answers", metavar="FILE", help="of dpg: ..._detail.txt of its script")
    add("--compat", action="store_true", help="of dpg: with the quirks of its script")
    add("--model", metavar="NAME", help="of the paper, to compare with: Janus-Pro-1B, ...")
    add("--out", metavar="DIR", help="where scores.json goes")
    flags = parser.parse_args(argv)
    if flags.benchmark not in _BENCHMARKS:
        raise UserError(
            f"no scores of {printable(flags.benchmark[:100])!r}: geneval or dpg."
            + nearest(flags.benchmark[:100], _BENCHMARKS)
        )
    if flags.benchmark == "geneval" and not flags.results:
        raise UserError("no results: name GenEval's results.jsonl")
    if flags.benchmark == "dpg" and not (flags.questions and flags.answers):
        raise UserError("dpg needs --questions dpg_bench.csv and --answers ..._detail.txt")
    return flags


def main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    from janus_jax.evaluation.published import published

    if flags.model is not None:
        published(flags.model)
    numbers, tables = (_geneval if flags.benchmark == "geneval" else _dpg)(flags)
    print_numbers(numbers, flags.model)
    if flags.out:
        _write(flags, numbers, tables)


def print_numbers(numbers: Sequence[Number], model: str | None) -> None:
    from janus_jax.evaluation.number_tables import as_text, numbers_grid

    print(as_text(numbers_grid(numbers, model)))


def _geneval(flags: argparse.Namespace) -> tuple[list[Number], Mapping[str, Any]]:
    from janus_jax.evaluation.drawn_numbers import geneval_numbers
    from janus_jax.evaluation.generation import read_header, read_results, replay, score_results

    results = read_results(flags.results)
    scores = score_results(replay(results) if flags.replay else results)
    detector = read_header(flags.results).get("detector")
    other = f"judged by {detector}" if detector else ""
    return geneval_numbers(scores, flags.model, other), {"geneval": scores.table()}


def _dpg(flags: argparse.Namespace) -> tuple[list[Number], Mapping[str, Any]]:
    from janus_jax.evaluation.drawn_numbers import dpg_numbers
    from janus_jax.evaluation.generation import read_answers, read_questions, score_answers

    questions = read_questions(flags.questions, flags.compat)
    scores = score_answers(questions, read_answers(flags.answers, questions))
    for name in scores.dropped[:5]:
        print(f"left out, as the official script does: {printable(name)}")
    other = "" if flags.compat else "added up without the quirks of the official script"
    return dpg_numbers(scores, flags.model, other), {"dpg": scores.table()}


def _write(flags: argparse.Namespace, numbers: Sequence[Number], tables: Mapping[str, Any]) -> None:
    from janus_jax.evaluation.number_tables import SCORES, scores_json
    from janus_jax.files import write_json
    from janus_jax.places import check_directory, make_directory

    check_directory(flags.out, "--out", [SCORES])
    if Path(flags.out, "run.json").exists():
        raise UserError(f"--out {flags.out} has the answers of a run: choose another directory")
    make_directory(flags.out)
    model = {"paper_model": flags.model, "results": flags.results or flags.answers}
    complete = all(number.protocol for number in numbers)
    write_json(
        Path(flags.out, SCORES),
        scores_json(model, numbers, {}, complete, {flags.benchmark: dict(tables)}),
    )
    print(printable(f"wrote {Path(flags.out, SCORES)}"))
