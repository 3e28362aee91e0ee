"""The training step against PyTorch on one CPU or GPU: same weights, same packed rows, same loss; losses shown.

  python benchmarks/training.py                                              # a check, in minutes
  python benchmarks/training.py --model janus-pro-1b --layers 2 --vocab 16384 --rows 1 --row_tokens 1024 \\
      --content text --dtype bfloat16 --out FILE.json

janus_jax takes the step of `train.py` (AdamW, clipped gradient, float32 parameters). PyTorch is transformers'
model, put together by hand, with fused AdamW; "sdpa" masks packed rows, "flex" and "varlen" skip what the mask
hides (benchmarks/train/pytorch.py). Our process and PyTorch's are pinned to the same cores; one works at a time,
in the order A B A B. Before anything is timed, every contender makes --gate_steps steps from the same weights:
losses and gradient norms must agree with those of the first PyTorch contender (float32: 1e-5 at the first step,
1e-3 and 1e-2 later; bfloat16: 0.01 of losses, 0.05 of norms). The first of these steps compiles. A ratio is the
contender's time over that of janus_jax in the same round. "of product" is what the model must compute in a step
(no padding, nothing twice), over its time, over the best rate of a large product that either framework reached in
this run. Rows have no more room than the fullest needs.

On a CPU, threads of PyTorch wait for each other by spinning: if others use the cores as well, it can be many
times slower than on its own, so ratios of a contended run say nothing (marked "!"); "CPU s" is what the process
itself used, of all cores together. Needs torch and transformers >= 5.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.inference.contenders import NATIVE, Contender
from benchmarks.inference.meter import GIB
from benchmarks.inference.models import MODELS, shrink, write_checkpoint
from benchmarks.inference.process import Worker, WorkerError
from benchmarks.inference.run import CONTENDED, write
from benchmarks.train.report import show, summarise
from benchmarks.train.rows import make_rows
from janus_jax.config import JanusConfig
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.freeze_sets import TRAINABLE
from janus_jax.interop.conversion.convert import expected_shapes
from janus_jax.models.blocks import REMAT
from janus_jax.models.packed_attention import BACK_ENDS

PEERS = tuple(f"{kind}{how}" for kind in ("sdpa", "flex", "varlen") for how in ("", "_compiled"))
CONTENT = ("text", "codes", "pixels")
RATIO = (2, 3, 5)  # of kinds of sequences: that all kinds may come
STAGES = ("stage1", "stage2", "stage3")
# Largest relative differences: of the first step's loss and gradient norm, and of those of later steps.
_NEAR_TIES = 100  # times as much where each side finds the codes itself: near ties fall either way
TOLERANCE = {
    "float32": {"loss": (1e-5, 1e-3), "grad_norm": (1e-5, 1e-2)},
    "bfloat16": {"loss": (1e-2, 1e-2), "grad_norm": (5e-2, 5e-2)},
}


def load(args: argparse.Namespace, directory: Path, rows: Path, scratch: Path) -> Any:
    """(contenders, what each process said when it was ready, the processes)."""
    common = {"directory": str(directory), "rows": str(rows), "dtype": args.dtype}
    common |= {"device": args.device, "stage": args.stage, "remat": args.remat}
    common |= {"learning_rate": args.learning_rate, "threads": len(args.cores) or os.cpu_count()}
    field, loaded, workers = [], {}, {}
    for name in tqdm(args.contenders, "load", leave=False):
        kind = "native_step" if name == NATIVE else "torch_step"
        own: dict[str, Any] = {}
        if name == NATIVE:
            own = {"attention": args.attention, "scan": args.scan}
            own |= {"targets_at_once": args.targets_at_once}
        if kind not in workers:
            workers[kind] = Worker(kind, args, scratch, kind)
            try:
                loaded[kind] = workers[kind].ask("load", **common, **own)
            except WorkerError as error:
                loaded[kind] = {"problem": f"not available: {' '.join(str(error).split())[:400]}"}
        contender = Contender(name, workers[kind])
        contender.problem = loaded[kind].get("problem", "")
        field.append(contender)
    return field, loaded, workers


@contextlib.contextmanager
def contenders(
    args: argparse.Namespace, directory: Path, rows: Path, scratch: Path
) -> Iterator[tuple[list[Contender], dict[str, Any]]]:
    """(those that were asked for, what the processes said when they were ready); ends the processes at last."""
    workers: dict[str, Worker] = {}
    try:
        field, loaded, workers = load(args, directory, rows, scratch)
        yield field, loaded
    finally:
        for worker in workers.values():
            worker.close()


def gate(args: argparse.Namespace, field: Sequence[Contender]) -> dict[str, dict[str, Any]]:
    """The first steps of each; who differs from the first peer takes no more part."""
    results: dict[str, dict[str, Any]] = {}
    want, reference = None, ""
    # A peer is what the others are compared with, so peers come first.
    for contender in tqdm(sorted(field, key=lambda c: c.name == NATIVE), "gate", leave=False):
        found = contender.ask("gate", steps=args.gate_steps)
        if found is None:
            continue
        seconds = found.pop("seconds")
        result = {**found, "compile_s": seconds[0] - seconds[-1]}
        results[contender.name] = result
        if want is None and contender.name != NATIVE:
            want, reference = found, contender.name
        if want is None:
            continue  # no PyTorch contender to compare with
        result["reference"] = reference
        for name, limits in TOLERANCE[args.dtype].items():
            got, exact = np.array(found[name]), np.array(want[name])
            error = np.abs(got - exact) / np.abs(exact)
            result[f"{name}_error"] = error.tolist()
            first = limits[0] * (_NEAR_TIES if args.content == "pixels" else 1)
            limit = np.array([first, *[limits[1]] * (len(error) - 1)])
            if not (error <= limit).all():  # a NaN is beyond any limit
                contender.problem = (
                    f"failed the parity gate: {name} differs from {reference}'s by "
                    f"{', '.join(f'{x:.1e}' for x in error)} of it, step by step; not timed"
                )
                break
    return results


def measure(args: argparse.Namespace, field: Sequence[Contender]) -> dict[str, list]:
    """Rounds of timed steps, in turn."""
    runs: dict[str, list] = {contender.name: [] for contender in field}
    with tqdm(total=args.pairs * len(field), desc="train") as bar:
        for _ in range(args.pairs):
            for contender in field:
                bar.set_postfix_str(contender.name)
                runs[contender.name].append(contender.ask("run", steps=args.steps))
                bar.update()
    return runs


def product_rates(args: argparse.Namespace, field: Sequence[Contender]) -> dict[str, float]:
    """Operations/s of a large square product, by framework and dtype, as far as they can be asked."""
    size = 8192 if args.device == "cuda" else args.product
    rates = {}
    for contender in field:
        side = "jax" if contender.name == NATIVE else "torch"
        for dtype in {args.dtype, "float32"} if args.device == "cpu" else {args.dtype}:
            if contender.problem or f"{side} {dtype}" in rates:
                continue
            rate = contender.ask("matmul", dtype=dtype, size=size)
            if rate:
                rates[f"{side} {dtype}"] = rate
    return rates


def check_memory(args: argparse.Namespace, config: JanusConfig) -> None:
    """Refuses what would not fit a CPU's memory: the machine would kill some process, maybe another's."""
    if args.device != "cpu":
        return
    frozen = trained = 0
    for path, shape in expected_shapes(config).items():
        size = int(np.prod(shape))
        if path.split("/")[0] in TRAINABLE[args.stage]:
            trained += size
        else:
            frozen += size
    # Parameters, gradients and the two moments; while weights are reset there is one more copy of all.
    processes = len({name == NATIVE for name in args.contenders})
    need = processes * (4 * 4 * trained + 4 * frozen) / GIB
    lines = dict(x.split(":") for x in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) / 2**20
    if need > free:
        raise UserError(
            f"parameters, gradients and optimizers of all contenders take {need:.1f} GiB of {free:.1f} GiB that "
            f"are free: fewer --layers, a smaller --vocab, or one side alone in --contenders"
        )


def model_config(args: argparse.Namespace) -> JanusConfig:
    """The preset with the sizes that flags changed; what no model can have is a `UserError`."""
    config = shrink(MODELS[args.model], args.layers)
    d = config.decoder
    changes: dict[str, int] = {
        name: value
        for name, value in (("width", args.width), ("ffw", args.ffw), ("vocab_size", args.vocab))
        if value is not None
    }
    if args.width is not None:
        if args.width < d.head_dim or args.width % d.head_dim:
            raise UserError(f"--width must be a multiple of {d.head_dim}, got {args.width}")
        heads = args.width // d.head_dim
        changes |= {"heads": heads, "kv_heads": max(1, heads * d.kv_heads // d.heads)}
    return config.replace(decoder=dataclasses.replace(d, **changes))


def step_flops(
    args: argparse.Namespace, config: JanusConfig, batch: dict[str, np.ndarray]
) -> float:
    """Operations that the model needs for a step on this batch, however they are computed."""
    import jax

    from janus_jax.models import JanusModel, init_params
    from janus_jax.training import Stage
    from janus_jax.training.content import content
    from janus_jax.training.flops import StepFlops

    shapes = jax.eval_shape(lambda: init_params(JanusModel(config), jax.random.key(0)))
    stage = Stage(args.stage, "janus", TRAINABLE[args.stage], 1, 1e-4, 0, 1, ratio=RATIO)
    return StepFlops(config, stage, shapes)(content(batch, config.siglip.num_patches)).model


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="tiny", help="random weights of this size")
    add("--layers", type=int, help="of the language model, and at most as many of the encoder")
    add("--width", type=int, help="of the language model; heads keep their size")
    add("--ffw", type=int, help="feed-forward width of the language model")
    add("--vocab", type=int, help="ids of the language model")
    add("--rows", type=int, default=1, help="packed rows of a step")
    add("--row_tokens", type=int, help="positions of a row; default: 4096, or 512 of a tiny model")
    add(
        "--content",
        choices=CONTENT,
        default="text",
        help="with pictures: to draw as codes, or as pixels",
    )
    add("--dtype", choices=sorted(TOLERANCE), default="float32", help="of products")
    add("--stage", choices=STAGES, default="stage2", help="whose freeze set")
    add(
        "--remat", choices=REMAT, default="none", help="PyTorch: gradient checkpointing with 'full'"
    )
    add("--attention", choices=("auto", *BACK_ENDS), default="auto", help="of janus_jax")
    add("--targets_at_once", type=int, default=0, help="of a row, in janus_jax; 0: all")
    add(
        "--scan", action="store_true", help="scanned layers in janus_jax, as full-size configs have"
    )
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add(
        "--contenders",
        default=f"{NATIVE},sdpa,sdpa_compiled",
        metavar="NAME,..",
        help="%(default)s",
    )
    add("--pairs", type=int, default=5, help="timed rounds")
    add("--steps", type=int, default=1, help="steps of a contender in a round")
    add("--gate_steps", type=int, default=3, help="steps of the parity gate, 2 or more")
    add("--learning_rate", type=float, default=1e-4)
    add("--product", type=int, default=2048, help="side of the product that rates a CPU")
    add("--cores", default="", metavar="I,..", help="default: all on a CPU, no pinning with a GPU")
    add("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if Path("/dev/nvidia0").exists() else "cpu")
    args.contenders = list(dict.fromkeys(x for x in args.contenders.split(",") if x))
    known = (NATIVE, *PEERS)
    if unknown := [x for x in args.contenders if x not in known]:
        raise UserError(f"--contenders: {unknown[0]!r} is none of {', '.join(known)}")
    if not args.contenders:
        raise UserError(f"--contenders names nobody: {', '.join(known)}")
    args.cores = _cores(args.cores)
    if args.device == "cpu" and not args.cores:
        args.cores = sorted(os.sched_getaffinity(0))
    if args.row_tokens is None:
        args.row_tokens = 512 if args.model == "tiny" else 4096
    for name, least in (
        *((name, 1) for name in ("layers", "ffw", "rows", "pairs", "steps", "product")),
        *(("vocab", 32), ("targets_at_once", 0), ("row_tokens", 64), ("gate_steps", 2)),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be {least} or more, got {value}")
    if not 0 < args.learning_rate < 1:
        raise UserError(f"--learning_rate must be between 0 and 1, got {args.learning_rate}")
    if args.out and not args.out.parent.is_dir():
        raise UserError(f"--out: no such directory: {args.out.parent}")
    return args


def _cores(text: str) -> list[int]:
    allowed = os.sched_getaffinity(0)
    try:
        cores = sorted({int(x) for x in text.split(",")}) if text else []
    except ValueError:
        raise UserError(f"--cores must be numbers such as 0,1, not {text!r}") from None
    if unknown := [x for x in cores if x not in allowed]:
        raise UserError(f"--cores: {unknown[0]} is none of {', '.join(map(str, sorted(allowed)))}")
    return cores


def main() -> None:
    load_average = os.getloadavg()[0]  # before we are a load ourselves
    args = parse_flags()
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only reads shapes: no hold of a GPU
    config = model_config(args)
    if args.row_tokens > config.decoder.max_position:
        raise UserError(
            f"--row_tokens: the model has {config.decoder.max_position} positions, not {args.row_tokens}"
        )
    check_memory(args, config)
    pictures, codes = args.content != "text", args.content == "codes"
    batch, content = make_rows(config, args.rows, args.row_tokens, pictures, codes)
    if pictures and not content["gen"] + content["und"]:
        raise UserError(f"--row_tokens {args.row_tokens} has no room for a picture")
    with tempfile.TemporaryDirectory(prefix="janus_training_") as scratch:
        scratch = Path(scratch)
        np.savez(scratch / "rows.npz", **batch)
        write_checkpoint(config, scratch / "model")
        report = {
            "command": shlex.join(sys.argv),
            "model": args.model,
            "config": config.to_dict(),
            "content": content,
            "flops": step_flops(args, config, batch),
            "load_average": load_average,
            "contended": args.device == "cpu" and load_average > CONTENDED,
            **{name: getattr(args, name) for name in ("dtype", "device", "cores", "rows")},
            **{name: getattr(args, name) for name in ("row_tokens", "stage", "remat", "steps")},
            "kind": args.content,
        }
        with contenders(args, scratch / "model", scratch / "rows.npz", scratch) as (field, loaded):
            report["loaded"] = loaded
            report["gate"] = gate(args, field)
            report["product_rates"] = product_rates(args, field)
            report["runs"] = measure(args, field)
            report["problems"] = {c.name: c.problem for c in field if c.problem}
    report["load_average_after"] = os.getloadavg()[0]
    summarise(report)
    print(show(report))
    write(args.out, report)
    if NATIVE in report["problems"]:
        raise RunError(f"{NATIVE}: {report['problems'][NATIVE]}")


if __name__ == "__main__":
    run_main(main)
