"""Looks at drawn pictures: detect finds objects for GenEval's rules, judge answers DPG-Bench's questions.

  python -m janus_jax.evaluation detect --pictures drawn/geneval --detector my_module:Detector --out found.jsonl
  python -m janus_jax.evaluation detect --pictures drawn/geneval --detector proxy --out found.jsonl
  python -m janus_jax.evaluation judge --pictures drawn/dpg --questions dpg_bench.csv --judge my_module:judge \\
      --out judged.jsonl
  python -m janus_jax.evaluation judge --pictures drawn/dpg --questions dpg_bench.csv --judge self \\
      --checkpoint models/janus-pro-1b --out judged.jsonl

A detector is a function of a picture (uint8 [h, w, 3]) that returns {class: [[x1, y1, x2, y2, score], ...]}; a
judge a function (picture, question) -> the probability of yes, or a server (http://localhost:8000/v1#MODEL).
Scores carry their names: the benchmarks' own numbers are of their own detector and judge. Goes on in --out where a
kill ended it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from janus_jax.cli import evaluate_model
from janus_jax.cli.bars import LateBar
from janus_jax.cli.parser import Parser
from janus_jax.errors import UserError
from janus_jax.places import check_file


def parse_flags(argv: Sequence[str], word: str) -> argparse.Namespace:
    parser = Parser(__doc__, word)
    add = parser.add_argument
    add("--pictures", metavar="DIR", help="the folder that draw filled")
    add("--out", metavar="FILE", help="JSON lines, for score")
    if word == "detect":
        add("--detector", metavar="proxy|MODULE:FUNCTION", help="finds objects")
    else:
        add("--questions", metavar="CSV", help="DPG-Bench's dpg_bench.csv")
        add("--compat", action="store_true", help="with the quirks of the official script")
        add("--samples", type=int, default=4, metavar="N", help="of each picture's grid, 1 to 4")
        add("--judge", metavar="self|ADDRESS#MODEL|MODULE:FUNCTION", help="answers questions")
        evaluate_model.add_model_flags(parser)
    add("--quiet", action="store_true", help="no progress bar")
    flags = parser.parse_args(argv)
    needed = ["pictures", "out", *(["detector"] if word == "detect" else ["questions", "judge"])]
    for name in needed:
        if not getattr(flags, name):
            raise UserError(f"--{name} is missing (see --help)")
    if word == "judge" and flags.judge == "self":
        evaluate_model.check_model_flags(flags)
    elif word == "judge":
        from janus_jax.evaluation.judges import check_judge

        check_judge(flags.judge)
    check_file(flags.out, "--out")
    return flags


def detect(argv: Sequence[str]) -> None:
    flags = parse_flags(argv, "detect")
    with LateBar("pictures", "detect", flags.quiet) as bar:
        _detect(flags, bar.to)


def judge(argv: Sequence[str]) -> None:
    flags = parse_flags(argv, "judge")
    with LateBar("pictures", "judge", flags.quiet) as bar:
        _judge(flags, bar.to)


def _detect(flags: argparse.Namespace, progress: Callable[[int, int], None]) -> None:
    from janus_jax.cli.evaluate_score import print_numbers
    from janus_jax.evaluation.drawn_numbers import geneval_numbers
    from janus_jax.evaluation.generation import (
        PROXY,
        judge_pictures,
        load_function,
        sanity_check,
        score_results,
    )
    from janus_jax.evaluation.generation.detectors import detector_name

    place = PROXY if flags.detector == "proxy" else flags.detector
    detector: Any = load_function(place, "detector")
    print(sanity_check(detector))
    results = judge_pictures(detector, flags.pictures, flags.out, progress)
    other = f"judged by {detector_name(detector)}"
    print_numbers(geneval_numbers(score_results(results), other=other), None)


def _judge(flags: argparse.Namespace, progress: Callable[[int, int], None]) -> None:
    from janus_jax.cli.evaluate_score import print_numbers
    from janus_jax.evaluation import ModelPredictor
    from janus_jax.evaluation.drawn_numbers import dpg_numbers
    from janus_jax.evaluation.generation import (
        PredictorJudge,
        dpg_prompts,
        judge_answers,
        read_questions,
        score_answers,
    )
    from janus_jax.evaluation.generation.detectors import detector_name
    from janus_jax.evaluation.judges import find_picture_judge

    questions = read_questions(flags.questions, flags.compat)
    prompts = dpg_prompts()
    drawn = tuple(p for p in prompts.prompts if Path(flags.pictures, f"{p.key}.png").is_file())
    if not drawn:
        raise UserError(f"--pictures {flags.pictures}: no picture of DPG-Bench is there")
    if flags.judge == "self":
        janus, _ = evaluate_model.load(flags)
        judge: Any = PredictorJudge(ModelPredictor(janus), flags.checkpoint)
    else:
        judge = find_picture_judge(flags.judge, f"{flags.out}.answers")
    answers = judge_answers(
        judge,
        dataclasses.replace(prompts, prompts=drawn),
        questions,
        flags.pictures,
        flags.out,
        flags.samples,
        progress,
    )
    if problem := getattr(judge, "problem", str)():
        print(f"warning: {problem}")
    other = f"judged by {detector_name(judge)}"
    print_numbers(dpg_numbers(score_answers(questions, answers), other=other), None)
