"""Asks a checkpoint the questions of benchmarks, and scores the answers.

  python -m janus_jax.evaluation run --checkpoint models/janus-pro-1b --data pope=POPE.tsv --data mme=MME.tsv \\
      --protocol paper --out results/janus-pro-1b
  python -m janus_jax.evaluation run --checkpoint models/janus-pro-1b --data mmmu=MMMU_DEV_VAL.tsv --limit 100
  python -m janus_jax.evaluation run --checkpoint runs/janus_tiny --benchmark emoji/geneval,emoji/questions

--data NAME=PATH names a benchmark (pope, mme, mmbench, seed, gqa, mmmu, mmvet) and its file or files (with commas
between): the tables of VLMEvalKit, the Parquet files of the Hub, or the official JSON files. --benchmark names
benchmarks of the registry, with the options that the config of the run has for them; or as JSON with options,
'{"name": "emoji/questions", "questions": 10}'.

--out gets predictions.jsonl (an answer a line; a run that was killed goes on where it was), scores.json, table.md
and index.html, a page with wrong answers. With --limit, numbers carry how many questions they are of, and none
stands beside the paper's. Exit code 2: bad input.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from janus_jax.cli import evaluate_model
from janus_jax.cli.bars import LateBar
from janus_jax.cli.parser import Parser
from janus_jax.console import printable
from janus_jax.errors import UserError
from janus_jax.places import check_directory, check_local

if TYPE_CHECKING:
    from janus_jax.evaluation.asking import Task
    from janus_jax.evaluation.running import Named


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the flags; raises UserError for what can be seen to be wrong without model and data."""
    parser = Parser(__doc__, "run")
    evaluate_model.add_model_flags(parser)
    add = parser.add_argument
    add("--data", action="append", default=[], metavar="NAME=PATH", help="may be repeated")
    add("--benchmark", action="append", default=[], metavar="NAME|JSON", help="of the registry")
    add(
        "--protocol",
        default="paper",
        metavar="NAMES",
        help="paper, vlmevalkit or lmms-eval, or several with commas between; default: %(default)s",
    )
    add("--images", metavar="DIR", help="pictures that the files name; default: beside them")
    add("--out", metavar="DIR", help="default: results/ and the name of the checkpoint")
    add(
        "--limit",
        type=int,
        metavar="N",
        help="questions of each --data, at random but always the same",
    )
    add("--batch_size", type=int, default=16, metavar="N", help="default: %(default)s")
    add(
        "--judge",
        metavar="self|ADDRESS#MODEL|MODULE:FUNCTION",
        help="a language model for MM-Vet and for answers that no rule reads: the checkpoint itself, a "
        "server such as http://localhost:8000/v1#Qwen/Qwen3-32B, or a function (prompt, try) -> text",
    )
    add("--cfg_weight", type=float, help="of pictures; default: the checkpoint's own")
    add("--temperature", type=float, help="of pictures; default: the checkpoint's own")
    add("--export", choices=("tsv", "xlsx"), help="the answers also as VLMEvalKit's files")
    add("--quiet", action="store_true", help="no progress bar")
    flags = parser.parse_args(argv)
    evaluate_model.check_model_flags(flags)
    if not flags.data and not flags.benchmark:
        raise UserError("nothing to ask: give --data NAME=PATH, or --benchmark NAME")
    if flags.limit is not None and flags.limit < 1:
        raise UserError(f"--limit must be at least 1 question, not {flags.limit}")
    if flags.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1 question, not {flags.batch_size}")
    name = os.path.basename(os.path.normpath(flags.checkpoint)) or "checkpoint"
    flags.out = flags.out or os.path.join("results", name)
    check_local(flags.out, "--out")
    check_directory(flags.out, "--out")  # before the model is loaded
    return flags


def open_tasks(flags: argparse.Namespace) -> tuple[list[Task], dict[str, dict[str, Any]]]:
    """The tasks of --data and --protocol, and what their answers depend on beside the model."""
    from janus_jax.evaluation.asking import make_task
    from janus_jax.evaluation.settings import fingerprint_of_files
    from janus_jax.evaluation.understanding import (
        BENCHMARK_FACTS,
        benchmark_facts,
        get_protocol,
        open_benchmark,
    )

    protocols = [name.strip() for name in flags.protocol.split(",") if name.strip()]
    if not protocols:
        raise UserError("--protocol is empty: paper, vlmevalkit or lmms-eval")
    wanted = []
    for given in flags.data:
        name, equals, place = given.partition("=")
        if (not equals and name not in BENCHMARK_FACTS) or "/" in name:
            raise UserError(
                f"--data {printable(given[:200])}: write it as NAME=PATH, such as pope={printable(given[:200])}; "
                f"names are {', '.join(BENCHMARK_FACTS)}"
            )
        benchmark_facts(name)
        if not equals or not place:
            raise UserError(f"--data {printable(given[:200])}: write it as {name}=PATH")
        if any(name == other for other, _ in wanted):
            raise UserError(
                f"--data {name} is there twice: name files that belong together once, with commas between"
            )
        wanted.append((name, [path for path in place.split(",") if path]))
    chosen = [(n, paths, get_protocol(p, n)) for n, paths in wanted for p in protocols]
    tasks, data, opened = [], {}, {}
    for name, paths, protocol in chosen:
        key = (name, protocol.split)
        if key not in opened:
            opened[key] = open_benchmark(
                name,
                paths,
                flags.images,
                protocol.split,
                progress=lambda rows, name=name: tqdm(
                    rows, f"reading {name}", unit="row", disable=True if flags.quiet else None
                ),
            )
        task = make_task(opened[key], protocol, flags.limit)
        tasks.append(task)
        data[task.name] = {
            "data": fingerprint_of_files(paths),
            "files": [os.path.basename(os.path.normpath(path)) for path in paths],
        }
    return tasks, data


def named_benchmarks(flags: argparse.Namespace) -> list[Named]:
    """Those of --benchmark: of a name alone with the options that the run's config has."""
    from janus_jax.evaluation import build_benchmark
    from janus_jax.evaluation.running import Named

    entries: list[dict[str, Any]] = []
    for given in flags.benchmark:
        if given.lstrip().startswith("{"):
            try:
                entries.append(json.loads(given))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"--benchmark {printable(given[:200])} is no JSON: {error}"
                ) from error
        else:
            of_run = _of_config(flags.checkpoint)
            names = [name.strip() for name in given.split(",") if name.strip()]
            entries += [of_run.get(name, {"name": name}) for name in names]
    values = {"cfg_weight": flags.cfg_weight, "temperature": flags.temperature}
    sampling = {name: value for name, value in values.items() if value is not None}
    return [Named(e, build_benchmark(e, "--benchmark"), sampling) for e in entries]


def _of_config(checkpoint: str) -> dict[str, dict[str, Any]]:
    """Name -> entry of the benchmarks in the config of a run directory; {} where there is none."""
    from janus_jax.untrusted import is_file, read_json, understanding

    path = Path(checkpoint, "config.json")
    if not is_file(path):
        return {}
    with understanding(path):
        listed = read_json(path).get("eval", {}).get("benchmarks", [])
        return {entry["name"]: entry for entry in listed}


def make_complete(place: str, predictor: Any) -> tuple[Callable[[str, int], str], str]:
    """The judge that --judge names, and what it is called."""
    if place == "self":

        def complete(prompt: str, number: int) -> str:
            settings = {"temperature": 0.0 if number == 0 else 0.7, "seed": number}
            return predictor.answer([None], [prompt], max_new_tokens=32, **settings)[0]

        return complete, "the model itself"
    from janus_jax.evaluation.judges import find_complete

    found = find_complete(place)
    return found, printable(getattr(found, "name", None) or place)


def main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    if flags.judge and flags.judge != "self":
        from janus_jax.evaluation.judges import check_judge

        check_judge(flags.judge)
    tasks, data = open_tasks(flags)
    named = named_benchmarks(flags)
    from janus_jax.evaluation import ModelPredictor
    from janus_jax.evaluation.number_tables import as_text, named_grid, numbers_grid
    from janus_jax.evaluation.running import PAGE, run

    check_new(flags.out, tasks)
    janus, model = evaluate_model.load(flags)
    predictor = ModelPredictor(janus)
    judge = make_complete(flags.judge, predictor) if flags.judge else (None, "")
    model_of_paper = evaluate_model.paper_model(janus)
    with (
        LateBar("questions", quiet=flags.quiet) as bar,
        LateBar("batches", "registry", flags.quiet) as of_registry,
        LateBar("answers", "judged", flags.quiet) as judged,
    ):
        counted = {"progress": of_registry.over}
        outcome = run(
            predictor,
            tasks,
            flags.out,
            model,
            data=data,
            paper_model=model_of_paper,
            named=named,
            named_predictor=ModelPredictor(janus, counted, counted),
            batch_size=flags.batch_size,
            complete=judge[0],
            judge_name=judge[1],
            progress=bar.to,
            on_judge=lambda done, total: judged.add() if done else None,
        )
    for result in outcome.results:
        for warning in result.warnings:
            print(f"warning: {result.task.name}: {printable(warning)}")
    if outcome.numbers:
        print(as_text(numbers_grid(outcome.numbers, model_of_paper)))
    if outcome.named:
        print(as_text(named_grid(outcome.named)))
    if flags.export:
        export(flags, tasks)
    print(printable(f"page: {os.path.join(flags.out, PAGE)}"))


def check_new(out: str, tasks: Sequence[Task]) -> None:
    """Raises UserError where a new run finds no picture, before the model is loaded (`run` checks others)."""
    from janus_jax.evaluation.asking import check_pictures
    from janus_jax.evaluation.running import PREDICTIONS

    if not Path(out, PREDICTIONS).exists():
        for task in tasks:
            check_pictures(task, "--images")


def export(flags: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """Writes the answers as VLMEvalKit's files, one folder a protocol."""
    from janus_jax.evaluation.predictions import ANSWER, Predictions
    from janus_jax.evaluation.running import PREDICTIONS
    from janus_jax.evaluation.understanding import write_predictions

    with Predictions(Path(flags.out, PREDICTIONS)) as predictions:
        for task in tasks:
            folder = Path(flags.out, "vlmevalkit_files", task.protocol.name)
            folder.mkdir(parents=True, exist_ok=True)
            asked = set(task.indices)
            done = predictions.done(task.protocol.name, task.protocol.benchmark)
            answers = {i: t for i, (k, t) in done.items() if k == ANSWER and i in asked}
            items = map(task.items.find, task.indices)
            name = os.path.basename(os.path.normpath(flags.out))
            path = write_predictions(
                folder, name, task.protocol.benchmark, items, answers, flags.export
            )
            print(printable(f"exported: {path}"))
