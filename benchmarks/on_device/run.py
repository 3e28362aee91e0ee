"""Everything about this project that only an accelerator can say, in one command of under ten minutes.

  python benchmarks/accelerator.py --out results/h100          # one H100 or H200: writes .json and .md
  python benchmarks/accelerator.py --model tiny --out /tmp/check         # on a CPU: that it works
  python benchmarks/accelerator.py --sections facts,drawing --seconds 300

Sections come in the order of their value. Each has a process and a limit of its own, and what it has measured is
on disk before it goes on, so nothing is lost to a crash, a hang or a lack of time. Weights are random, made on
the device, at a model's true size. Rates are compared with a copy and a product measured in the same run. Needs
jax, flax, optax, orbax-checkpoint, einops, safetensors, tokenizers and Pillow; qwix for int8, torch and
transformers for the peers; no network.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.inference.models import MODELS
from benchmarks.on_device.setting import Setting
from benchmarks.on_device.tables import render
from benchmarks.paths import importable
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.models import BACK_ENDS, REMAT

LEAST = 15  # seconds left under which no section is begun


@dataclasses.dataclass(frozen=True)
class Section:
    """One process.

    Attributes:
      module, function: what it runs, of `benchmarks.on_device`.
      estimate_s: at true size on one H200, compilation included: measured, but for "wide", "training_peer",
        "large", "serving" and "peers".
      limit_s: after which it is ended.
      title: of its table.
    """

    module: str
    function: str
    estimate_s: int
    limit_s: int
    title: str


SECTIONS = {
    "facts": Section("facts", "facts", 7, 60, "Machine"),
    "parity": Section("parity", "parity", 62, 120, "Numbers of the official code"),
    "drawing": Section("drawing", "drawing", 110, 240, "Drawing"),
    "training": Section("training", "training", 100, 200, "Training step, stage 2"),
    "wide": Section(
        "training", "wide_training", 90, 200, "Training step, layers of the large model's width"
    ),
    "training_peer": Section(
        "training_peer", "training_peer", 120, 240, "Training step beside PyTorch's"
    ),
    "large": Section("drawing", "large_drawing", 60, 120, "Drawing, large model"),
    "answering": Section("drawing", "answering", 36, 80, "Answering"),
    "serving": Section("serving", "serving", 60, 120, "The server's blocks"),
    "attention": Section("attention", "attention", 30, 80, "Packed attention of one layer"),
    "peers": Section("peers", "peers", 120, 200, "PyTorch on the same device"),
    "profile": Section("profiling", "profile", 24, 90, "Kernels of a decode step"),
    "kernels": Section("kernels", "kernels", 21, 60, "Decode attention of one layer"),
    "options": Section("options", "options", 58, 120, "Options of XLA"),
}


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="janus-pro-1b")
    add("--large", choices=sorted(MODELS), help="default: janus-pro-7b; tiny with --model tiny")
    add("--sections", default=",".join(SECTIONS), metavar="NAME,..", help="%(default)s")
    add("--images", default="1,16", metavar="N,..", help="pictures of one prompt at once")
    add("--rows", default="4", metavar="N,..", help="packed rows of a training step")
    add(
        "--steps",
        default="cudnn+full,cudnn+dots,blocked+full",
        metavar="A+R,..",
        help="attention and remat of it, in order",
    )
    add("--repeats", type=int, default=3, help="timed runs of one thing")
    add("--seconds", type=int, default=540, help="for all sections together")
    add("--device", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    add("--out", type=Path, default=Path("accelerator"), help="stem of the .json and .md to write")
    add("--run", choices=SECTIONS, help=argparse.SUPPRESS)  # this process is a section
    args = parser.parse_args()
    args.large = args.large or ("tiny" if args.model == "tiny" else "janus-pro-7b")
    args.device = args.device or ("gpu" if Path("/dev/nvidia0").exists() else "cpu")
    args.images, args.rows = _numbers("images", args.images), _numbers("rows", args.rows)
    for step in args.steps.split(","):
        back_end, _, remat = step.partition("+")
        if back_end not in BACK_ENDS or remat not in REMAT:
            kinds = f"one of {', '.join(BACK_ENDS)}, a plus, and one of {', '.join(REMAT)}"
            raise UserError(f"--steps: {step!r} is not {kinds}")
    args.sections = [name for name in args.sections.split(",") if name]
    if unknown := [name for name in args.sections if name not in SECTIONS]:
        raise UserError(f"--sections: {unknown[0]} is none of {', '.join(SECTIONS)}")
    for name in ("repeats", "seconds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if not args.out.resolve().parent.is_dir():
        raise UserError(f"--out: no such directory: {args.out.resolve().parent}")
    return args


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(x) for x in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UserError(f"--{name} must be numbers of 1 or more, such as 1,16; got {text!r}")
    return numbers


def main() -> None:
    args = parse_flags()
    if args.run:
        _run_section(args)
        return
    began = time.perf_counter()
    report: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "model": args.model,
        "large": args.large,
        "sections": {},
    }
    with tempfile.TemporaryDirectory(prefix="accelerator_") as scratch:
        bar = tqdm(args.sections)
        for name in bar:
            section = SECTIONS[name]
            bar.set_postfix_str(f"{name}, about {section.estimate_s} s at full size")
            left = args.seconds - (time.perf_counter() - began)
            if left < LEAST:
                report["sections"][name] = {"problem": "left out: no time was left"}
            else:
                report["sections"][name] = _start(args, name, min(section.limit_s, left), scratch)
            _write(args.out, report)
    print(render(report, {name: section.title for name, section in SECTIONS.items()}))
    failed = [name for name, found in report["sections"].items() if "problem" in found]
    if failed:
        raise RunError(
            f"not measured, or not all of it: {', '.join(failed)}; the rest is in {args.out}.json"
        )


def _start(args: argparse.Namespace, name: str, limit: float, scratch: str) -> dict[str, Any]:
    """Runs a section in a process of its own; what it measured, however it ended."""
    part = Path(scratch) / f"{name}.json"
    log = Path(scratch) / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.on_device.run", "--run", name, "--out", str(part)]
    for flag in ("model", "large", "repeats", "device", "steps"):
        command += [f"--{flag}", str(getattr(args, flag))]
    for flag in ("images", "rows"):
        command += [f"--{flag}", ",".join(map(str, getattr(args, flag)))]
    env = importable(os.environ)
    env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # One compilation of what several sections run; compile times are those of first uses.
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(scratch) / "programs"))
    if args.device == "cpu":
        env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=env, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
            problem = "" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            problem = f"ended after its limit of {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
                process.wait()
    found = json.loads(part.read_text()) if part.exists() else {}
    found["section_s"] = time.perf_counter() - began
    if problem:
        lines = log.read_text(errors="replace").strip().splitlines()
        found["problem"] = problem
        found["log"] = lines[-25:]
    return found


def _run_section(args: argparse.Namespace) -> None:
    """Measures one section; every value that it yields goes to disk at once."""
    import importlib

    setting = Setting(
        args.device,
        args.model,
        args.large,
        args.images,
        args.repeats,
        args.rows,
        tuple(args.steps.split(",")),
        args.out.parent,
    )
    section = SECTIONS[args.run]
    module = importlib.import_module(f"benchmarks.on_device.{section.module}")
    found: dict[str, Any] = {}
    try:
        for values in getattr(module, section.function)(setting):
            found |= values
            _save(args.out, found)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _finite(values: Any) -> Any:
    """JSON has no NaN: what is not finite becomes a word."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if not isinstance(values, float) or math.isfinite(values) else str(values)


def _save(path: Path, values: dict[str, Any]) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(_finite(values), indent=1) + "\n")
    new.replace(path)


def _write(stem: Path, report: dict[str, Any]) -> None:
    titles = {name: section.title for name, section in SECTIONS.items()}
    _save(stem.with_name(stem.name + ".json"), report)
    new = stem.with_name(stem.name + ".md.new")
    new.write_text(render(report, titles) + "\n")
    new.replace(stem.with_name(stem.name + ".md"))


if __name__ == "__main__":
    run_main(main)
