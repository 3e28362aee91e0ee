"""Drawing (and answering) against PyTorch on one CPU or GPU: same weights, prompt, dtype and work; losses shown.

  python benchmarks/sampling.py --model tiny --images 1,4                    # a check, in minutes
  python benchmarks/sampling.py --checkpoint DIR --dtype bfloat16 --out FILE.json
  python benchmarks/sampling.py --checkpoint DIR --contenders janus_jax --no_drawing --fit

Every contender has its own process, pinned to the same cores; one of them works at a time, in the order A B A B.
Before anything is timed, the guided logits of given codes must agree with those of the first PyTorch contender
(float32: max error <= 1e-3 of their standard deviation, bfloat16: rms error <= 5 % of it). The time is from
prompt ids to pixels on the host, codes sampled, guidance 5: janus_jax is one program, the peers' prefill + decode
+ VQ. A ratio is the contender's time over that of janus_jax in the same round. "of bandwidth" is what a decode
loop must read (layers and image head in the model's dtype, filled part of the cache) over its time, over the
bandwidth measured in this run. Our image tokenizer is in float32 always, the peers' in the model's dtype. On a
GPU, float32 is without TF32 on both sides. Threads of PyTorch wait for each other by spinning: if others use its
cores as well, it can be many times slower than on its own, so ratios of a contended run of several cores say
nothing (marked "!"). Needs torch and transformers >= 5.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.inference.contenders import (
    CONTENDERS,
    NATIVE,
    NATIVE_INT8,
    Contender,
    contenders,
    is_native,
)
from benchmarks.inference.models import MODELS, shrink, write_checkpoint
from benchmarks.inference.process import Worker
from benchmarks.inference.report import regress, same, show, spread, summarise
from janus_jax.config import JanusConfig
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.inference.kv_cache import bytes_per_slot
from janus_jax.interop.conversion.source import open_source

TOLERANCE = {"float32": ("max_error", 1e-3), "bfloat16": ("rms_error", 0.05)}
SHORT = 16  # codes of a warm-up on a CPU, where whole pictures take minutes, unless they
FEW = 64  # have no more codes than this
CONTENDED = 0.5  # load average before the run, on a CPU


# ---------------------------------------------------------------- what is measured


def gate(
    args: argparse.Namespace, field: Sequence[Contender], config: JanusConfig, n: int, scratch: Path
) -> dict[str, dict[str, float]]:
    """Compares teacher-forced guided logits; who is beyond the tolerance takes no more part."""
    steps = min(args.gate_steps, args.steps)
    codes = np.random.default_rng(n).integers(0, config.vq.codebook_size, (n, steps))
    np.save(scratch / "codes.npy", codes)
    path, want, results = scratch / "logits.npy", None, {}
    # A peer is what the others are compared with, so peers come first.
    for contender in sorted(field, key=lambda c: is_native(c.name)):
        request = {"images": n, "codes": str(scratch / "codes.npy"), "steps": steps}
        contender.ask("gate", **request, out=str(path))
        if contender.problem:
            continue
        got = np.load(path)
        if want is None:
            if is_native(contender.name):
                continue  # no PyTorch contender to compare with
            want, scale, reference = got, float(got.std()), contender.name
        error = np.abs(got - want)
        result = {
            "reference": reference,
            "steps": steps,
            "max_error": float(error.max()) / scale,
            "rms_error": float(np.sqrt((error**2).mean())) / scale,
            "argmax_agree": float((got.argmax(-1) == want.argmax(-1)).mean()),
        }
        results[contender.name] = result
        what, limit = TOLERANCE[args.dtype]
        # int8 is not exact by design: reported, not judged. A NaN is beyond any limit.
        if contender.name != NATIVE_INT8 and not result[what] <= limit:
            contender.problem = (
                f"failed the parity gate: {what} {result[what]:.2g} of the logits' standard "
                f"deviation, limit {limit}; not timed"
            )
    return results


def measure(
    args: argparse.Namespace, field: Sequence[Contender], config: JanusConfig, scratch: Path
) -> list[dict[str, Any]]:
    """Warm-up, gate and timed rounds of every number of pictures: one row a contender."""
    rows = []
    whole = args.device == "cuda" or args.steps <= FEW
    warm_steps = args.steps if whole else SHORT
    total = len(args.images) * len(field) * (args.pairs + 1)
    with tqdm(total=total, desc="draw") as bar:
        for n in args.images:
            for contender in field:
                contender.release()
            warm = {}
            for contender in field:
                bar.set_postfix_str(f"{n} pictures: warm up {contender.name}")
                warm[contender.name] = contender.ask(
                    "warm", images=n, steps=warm_steps, timed_steps=args.steps
                )
                bar.update()
            bar.set_postfix_str(f"{n} pictures: gate")
            gates = gate(args, field, config, n, scratch)
            runs: dict[str, list] = {contender.name: [] for contender in field}
            for pair in range(args.pairs):
                for contender in field:
                    bar.set_postfix_str(f"{n} pictures: {contender.name}")
                    run = contender.ask("run", images=n, steps=args.steps, seed=pair)
                    runs[contender.name].append(run)
                    bar.update()
            for contender in field:
                row = {"contender": contender.name, "images": n, "problem": contender.problem}
                row |= {"gate": gates.get(contender.name), "warm": warm[contender.name]}
                rows.append(row | {"runs": runs[contender.name]})
    return rows


def understanding(args: argparse.Namespace, field: Sequence[Contender]) -> list[dict[str, Any]]:
    """One picture and a question: time to the first token, and tokens/s after it."""
    rows, chosen = [], [c for c in field if is_native(c.name) or c.name.startswith("transformers")]
    request = {"tokens": args.answer_tokens, "prompt_length": args.prompt_length}
    rounds: dict[str, list] = {contender.name: [] for contender in chosen}
    for _ in tqdm(range(1 + args.pairs), "answer"):  # the first round compiles
        for contender in chosen:
            rounds[contender.name].append(contender.ask("understand", **request))
    answers = {name: runs[0] for name, runs in rounds.items()}
    tokens = {name: answer["tokens"] for name, answer in answers.items() if answer}
    for contender in chosen:
        row: dict[str, Any] = {"contender": contender.name, "problem": contender.problem}
        runs = rounds[contender.name][1:]
        if not contender.problem:
            row["first_token_s"] = spread([run["first"] for run in runs])
            row["tokens_per_s"] = spread([(args.answer_tokens - 1) / run["rest"] for run in runs])
            row["first_call_s"] = answers[contender.name]["first"]
            if "transformers" in tokens:
                row["same_tokens"] = same(tokens[contender.name], tokens["transformers"])
        rows.append(row)
    return rows


def fit(
    args: argparse.Namespace, native: Contender, config: JanusConfig, bandwidth: float, cache: str
) -> dict[str, Any]:
    """Least squares of decode ms/step = a + b x rows x window, and what b would be at full bandwidth."""
    points = []
    request = {"windows": 4, "steps": min(SHORT, args.steps - 1), "repeats": args.pairs}
    for n in tqdm(args.images, "fit"):
        points += native.ask("fit", images=n, **request) or []
    if native.problem:
        raise RunError(native.problem)
    ms = np.array([p["ms"] for p in points])
    work = np.array([p["rows"] * p["window"] for p in points], float)
    rows = np.array([p["rows"] for p in points], float)
    plain, error = regress(ms, work)
    # On a CPU the products cost by the row, too: the second form tells them from the cache's reads.
    slot = bytes_per_slot(config.decoder, cache)
    ideal = slot / bandwidth * 1000
    with_rows = None
    if len(args.images) > 1:
        (a, b, row), error_rows = regress(ms, work, rows)
        with_rows = {"a_ms": a, "b_ms": b, "row_ms": row, "r2": error_rows}
        with_rows["b_over_ideal"] = b / ideal
    return {
        "points": points,
        "a_ms": plain[0],
        "b_ms": plain[1],
        "r2": error,
        "with_rows": with_rows,
        "bytes_per_slot": slot,
        "b_ideal_ms": ideal,
        "b_over_ideal": plain[1] / ideal,
    }


# ---------------------------------------------------------------- the command line


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="tiny", help="random weights of this size")
    add("--layers", type=int, help="of the language model; fewer, with --model")
    add("--checkpoint", type=Path, metavar="DIR", help="PyTorch format; instead of --model")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add("--dtype", choices=sorted(TOLERANCE), default="float32")
    add("--images", default="1,4", metavar="N,..", help="pictures of one prompt at once")
    add("--contenders", default=",".join(CONTENDERS), metavar="NAME,..", help="%(default)s")
    add(
        "--int8",
        default="",
        metavar="PARTS",
        help="'weights', 'cache' or both: also 'janus_jax_int8'",
    )
    add("--pairs", type=int, default=5, help="timed rounds")
    add("--steps", type=int, help="codes of a picture; default: all. Fewer is marked as partial")
    add("--gate_steps", type=int, default=16, help="codes of the parity gate")
    add("--prompt_length", type=int, default=30, help="ids; our engine pads to multiples of 16")
    add("--cores", default="", metavar="I,..", help="default: all on a CPU, no pinning with a GPU")
    add("--share_torch", action="store_true", help="one PyTorch process and model: less memory")
    add("--understanding", action="store_true", help="also time answers about a picture")
    add("--no_drawing", action="store_true", help="only --understanding or --fit")
    add("--answer_tokens", type=int, default=65, help="of an answer")
    add("--fit", action="store_true", help="also fit ms/step of janus_jax to rows x window")
    add("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    numbers = lambda name, text: [_whole(name, x) for x in text.split(",")] if text else []
    args.images = sorted(set(numbers("--images", args.images)))
    args.cores = numbers("--cores", args.cores)
    args.contenders = [x for x in args.contenders.split(",") if x]
    args.int8 = [x for x in args.int8.split(",") if x]
    args.device = args.device or ("cuda" if Path("/dev/nvidia0").exists() else "cpu")
    for name, given, known in (
        ("--contenders", args.contenders, CONTENDERS),
        ("--int8", args.int8, ("weights", "cache")),
        ("--cores", args.cores, os.sched_getaffinity(0)),
    ):
        if unknown := [x for x in given if x not in known]:
            raise UserError(f"{name}: {unknown[0]} is none of {', '.join(map(str, known))}")
    if not args.images or min(args.images) < 1:
        raise UserError("--images must be numbers of 1 or more, such as 1,4")
    for name, least in (
        ("pairs", 1),
        ("gate_steps", 1),
        ("prompt_length", 4),
        ("answer_tokens", 2),
    ):
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be {least} or more, got {getattr(args, name)}")
    if args.layers is not None and (args.layers < 1 or args.checkpoint):
        raise UserError("--layers must be 1 or more, and needs --model, not --checkpoint")
    if args.no_drawing and not (args.understanding or args.fit):
        raise UserError("--no_drawing leaves nothing to do: add --understanding or --fit")
    if args.fit and NATIVE not in args.contenders:
        raise UserError(f"--fit is about {NATIVE!r}, which --contenders does not name")
    if args.device == "cpu" and not args.cores:
        args.cores = sorted(os.sched_getaffinity(0))
    args.contenders = [name for name in CONTENDERS if name in args.contenders]
    if args.out and not args.out.parent.is_dir():
        raise UserError(f"--out: no such directory: {args.out.parent}")
    return args


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}: {text!r} is no whole number") from None


def main() -> None:
    load_average = os.getloadavg()[0]  # before we are a load ourselves
    args = parse_flags()
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only reads shapes: no hold of a GPU
    with tempfile.TemporaryDirectory(prefix="janus_sampling_") as scratch:
        scratch = Path(scratch)
        if args.checkpoint:
            directory, config = args.checkpoint, open_source(args.checkpoint).config
        else:
            directory, config = scratch / args.model, shrink(MODELS[args.model], args.layers)
            write_checkpoint(config, directory)
        codes = config.vq.num_codes
        args.steps = args.steps or codes
        if not 2 <= args.steps <= codes:
            raise UserError(f"--steps must be 2 to {codes}, got {args.steps}")
        report = {
            "command": shlex.join(sys.argv),
            "model": config.name if args.checkpoint else args.model,
            "config": config.to_dict(),
            "dtype": args.dtype,
            "device": args.device,
            "cores": args.cores,
            "steps": args.steps,
            "num_codes": codes,
            "partial": args.steps < codes,
            "load_average": load_average,
            "contended": args.device == "cpu" and load_average > CONTENDED,
        }
        with contenders(args, directory, config, scratch) as (field, loaded):
            report["loaded"] = loaded
            report["bandwidth"] = measure_bandwidth(args, field, scratch)
            bandwidth = report["bandwidth"]["bytes_per_s"]
            if not args.no_drawing:
                report["drawing"] = measure(args, field, config, scratch)
                summarise(args, config, report["drawing"], bandwidth)
                write(args.out, report)  # what comes next may run out of memory
            if args.understanding:
                report["understanding"] = understanding(args, field)
                write(args.out, report)
            if args.fit:
                if NATIVE not in loaded:
                    raise RunError(field[0].problem)
                report["fit"] = fit(args, field[0], config, bandwidth, loaded[NATIVE]["cache"])
    print(show(report))
    write(args.out, report)


def write(path: Path | None, report: dict[str, Any]) -> None:
    """The report so far, whole or not at all."""
    if path is None:
        return
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(report, indent=1) + "\n")
    new.replace(path)


def measure_bandwidth(
    args: argparse.Namespace, field: Sequence[Contender], scratch: Path
) -> dict[str, Any]:
    """Of the cores, by a process of its own; of a GPU, by a contender that is there anyway."""
    if args.device == "cpu":
        worker = Worker("probe", args, scratch, "probe")
        try:
            return worker.ask("bandwidth")
        finally:
            worker.close()
    for contender in sorted(field, key=lambda c: is_native(c.name)):
        if not contender.problem:
            return contender.worker.ask("bandwidth")
    raise RunError("; ".join(f"{c.name}: {c.problem}" for c in field))


if __name__ == "__main__":
    run_main(main)
