"""A step of fine-tuning with an adapter against one with full weights: time and memory on this machine's CPU.

    python -m benchmarks.train.lora_cost --json /tmp/lora_cost.json       # 2 layers of the 1B width, some minutes
    python -m benchmarks.train.lora_cost --layers 1 --vocab 2048 --row_tokens 64 --content text     # a check

The recipes `finetune:full`, `finetune:lora`, and `finetune:lora` over an int8 base, with fewer layers, a smaller
vocabulary and random weights. All get the same packed rows, and take turns in one process: A B C A B C. A ratio
is the time of a recipe over that of `full` in the same round. What the compiled step needs beside its arguments
is XLA's own number; "resident" is the peak of a process of its own that makes two steps of one recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.inference.meter import GIB, Meter, versions
from benchmarks.paths import ROOT
from benchmarks.train.rows import make_rows
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.files import write_json

# Name -> (variant of the config, dtype of what does not train).
RECIPES = {
    "full": ("full", "bfloat16"),
    "lora": ("lora", "bfloat16"),
    "lora_int8": ("lora", "int8"),
}


class Recipe:
    """The step of a recipe, compiled, with a state of its own."""

    def __init__(self, name: str, args: argparse.Namespace):
        import jax

        from janus_jax.configs import finetune
        from janus_jax.models import init_params
        from janus_jax.run.experiment import build
        from janus_jax.training import add_params, init_state, make_step
        from janus_jax.training.state import with_dtypes

        variant, frozen_dtype = RECIPES[name]
        config = finetune.get_config(variant)
        config.model.overrides.update(
            decoder={"layers": args.layers, "vocab_size": args.vocab},
            siglip={"layers": args.layers},
        )
        config.policy.update(frozen_dtype=frozen_dtype, compute_dtype=args.dtype)
        config.stages.finetune.update(batch_size=args.rows, accumulate=1)
        config.mesh.fsdp = 1
        experiment = build(config, jax.devices("cpu")[:1], weights=False)
        (stage,) = experiment.stages
        pictures = args.content != "text"
        batch, self.content = make_rows(
            experiment.janus_config, args.rows, args.row_tokens, pictures
        )
        key = jax.random.key(0)
        params = jax.jit(lambda k: init_params(experiment.model, k))(key)
        params = add_params(experiment.model, stage, params, key)
        params = with_dtypes(params, stage, experiment.dtypes)
        self._state, self._frozen = init_state(stage, params)
        self._batch = jax.device_put(batch)
        self._step = make_step(experiment.model, stage, experiment.processor.tokenizer.pad_id)
        self._done = 0
        held = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree)) / GIB
        stats = (
            self._step.lower(self._state, self._frozen, self._batch, 0).compile().memory_analysis()
        )
        self.memory = {
            "trained_gib": held(self._state.trainable),
            "moments_gib": held(self._state.opt_state),
            "frozen_gib": held(self._frozen),
            "arguments_gib": stats.argument_size_in_bytes / GIB,
            "temporary_gib": stats.temp_size_in_bytes / GIB,
        }
        self.attention = experiment.model.attention

    def step(self) -> tuple[float, float]:
        """(seconds, loss) of one more step."""
        import jax

        began = time.perf_counter()
        self._state, metrics = self._step(self._state, self._frozen, self._batch, self._done)
        jax.block_until_ready((self._state, metrics))
        self._done += 1
        return time.perf_counter() - began, float(metrics["loss"])


def alone(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a process that has this recipe alone needs: compiled sizes, and its peak while it makes two steps."""
    recipe = Recipe(name, args)
    recipe.step()  # compiles
    with Meter() as meter:
        losses = [recipe.step()[1] for _ in range(2)]
    return recipe.memory | {"resident_gib": meter.resident / GIB, "losses": losses}


def in_own_process(name: str) -> dict[str, Any]:
    """`alone`, by this command with `--alone`."""
    command = [sys.executable, "-m", "benchmarks.train.lora_cost", *sys.argv[1:], "--alone", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunError(f"{name}: {lines[-1].removeprefix('error: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def rounds(recipes: dict[str, Recipe], count: int) -> tuple[dict[str, list[float]], float]:
    """(seconds of each recipe by round, share of the cores that others had meanwhile)."""
    found: dict[str, list[float]] = {name: [] for name in recipes}
    with Meter() as meter:
        for _ in tqdm(range(count), "rounds"):
            for name, recipe in recipes.items():
                found[name].append(recipe.step()[0])
    return found, meter.others


def ratios(seconds: dict[str, list[float]], against: str = "full") -> dict[str, dict[str, float]]:
    """Of each recipe the times over those of `against`, round by round: middle, least and most."""
    found = {}
    for name, times in seconds.items():
        of_rounds = [a / b for a, b in zip(times, seconds[against], strict=True)]
        found[name] = {"median": statistics.median(of_rounds)}
        found[name] |= {"min": min(of_rounds), "max": max(of_rounds)}
    return found


def table(report: dict[str, Any]) -> str:
    lines = [
        "| recipe | s a step | of full, by round | trained + moments, GiB | frozen | temporaries | resident |",
        "|" + " --- |" * 7,
    ]
    for name, memory in report["memory"].items():
        ratio, seconds = report["ratios"][name], statistics.median(report["seconds"][name])
        lines.append(
            f"| {name} | {seconds:.2f} | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | "
            f"{memory['trained_gib'] + memory['moments_gib']:.2f} | {memory['frozen_gib']:.2f} | "
            f"{memory['temporary_gib']:.2f} | {memory['resident_gib']:.2f} |"
        )
    return "\n".join(lines)


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--layers", type=int, default=2, help="of language model and encoder (%(default)s)")
    add("--vocab", type=int, default=16384, help="ids of the language model (%(default)s)")
    add("--rows", type=int, default=1, help="packed rows of a step (%(default)s)")
    add("--row_tokens", type=int, default=1024, help="positions of a row (%(default)s)")
    add("--content", choices=("text", "codes"), default="codes", help="with pictures, as codes?")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of products")
    add("--rounds", type=int, default=6, help="timed (%(default)s)")
    add("--json", type=Path)
    add("--alone", choices=RECIPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    least_of = {"layers": 1, "vocab": 2048, "rows": 1, "row_tokens": 64, "rounds": 1}
    for name, least in least_of.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be {least} or more, got {getattr(args, name)}")
    if args.content == "codes" and args.row_tokens < 1024:
        raise UserError(f"--row_tokens {args.row_tokens} has no room for a picture: 1024, or text")
    return args


def main() -> None:
    load = os.getloadavg()[0]  # before we are a load ourselves
    args = parse_flags()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if args.alone:
        print(json.dumps(alone(args.alone, args)))
        return
    memory = {name: in_own_process(name) for name in tqdm(RECIPES, "memory")}
    recipes = {name: Recipe(name, args) for name in tqdm(RECIPES, "compile")}
    rounds(recipes, 1)  # compiles, and warms up
    seconds, others = rounds(recipes, args.rounds)
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.train.lora_cost", *sys.argv[1:]]),
        "setting": {k: v for k, v in vars(args).items() if k not in ("json", "alone")},
        "content": recipes["full"].content,
        "attention": recipes["full"].attention,
        "versions": versions(),
        "cpus": os.cpu_count(),
        "load_before": load,
        "others_share_of_cores": others,
        "memory": memory,
        "seconds": seconds,
        "ratios": ratios(seconds),
    }
    print(table(report))
    print(f"Others had {others:.0%} of the cores meanwhile.")
    if args.json:
        write_json(args.json, report)


if __name__ == "__main__":
    run_main(main)
