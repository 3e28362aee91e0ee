"""How long the training step takes to compile, by the number of layers of the language model.

    python -m benchmarks.compiled.layers                     # CPU, seconds: a narrow model, every layer count
    python -m benchmarks.compiled.layers --config janus_pro_1b --row_tokens 1024 --json layers.json

The step of stage 2 with codes, compiled for one CPU device and never run. "scanned" has its layers in one loop, as
the configs of released sizes have; "unrolled" has each in the program. The same order is run twice, and the
faster of both counts: the first compilation of a process also loads the compiler.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import jax

from janus_jax.errors import UserError, run_main
from janus_jax.files import write_json
from janus_jax.run.aot import compile_step
from janus_jax.run.experiment import build

CONFIGS = ("janus_tiny", "janus_pro_1b", "janus_pro_7b")


def seconds(name: str, layers: int, scanned: bool, row_tokens: int | None) -> float:
    """To compile the step of stage 2 of a config with so many layers."""
    config = importlib.import_module(f"janus_jax.configs.{name}").get_config()
    overrides = {"decoder": {"layers": layers}, "scan_layers": scanned}
    config.model.overrides.update(overrides)
    config.mesh.fsdp = 1
    stage = config.stages.stage2
    stage.batch_size = stage.accumulate = config.data.streams = 1
    if row_tokens:
        config.data.row.tokens = row_tokens
    experiment = build(config)
    stage = next(s for s in experiment.stages if s.name == "stage2")
    return compile_step(experiment, stage, codes=True).seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=CONFIGS, default="janus_tiny")
    parser.add_argument("--layers", default="2,8,32", metavar="N,..", help="%(default)s")
    parser.add_argument("--row_tokens", type=int, help="instead of the config's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        counts = [int(n) for n in args.layers.split(",")]
    except ValueError:
        raise UserError(f"--layers must be numbers such as 2,8,32, not {args.layers!r}") from None
    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[str, dict[int, float]] = {"scanned": {}, "unrolled": {}}
    for _ in range(2):
        for kind, times in found.items():
            for n in counts:
                took = seconds(args.config, n, kind == "scanned", args.row_tokens)
                times[n] = min(took, times.get(n, took))
    print(f"| {args.config}, {jax.__version__} | " + " | ".join(map(str, counts)) + " |")
    print("| --- |" + " --- |" * len(counts))
    for kind, times in found.items():
        print(f"| {kind} | " + " | ".join(f"{times[n]:.1f} s" for n in counts) + " |")
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run_main(main)
