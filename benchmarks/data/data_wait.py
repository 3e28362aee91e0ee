"""The share of its time that a training run waits for data: files against the built-in source.

    python -m benchmarks.data.data_wait
    python -m benchmarks.data.data_wait --manifest mine.yaml --stage stage3 --steps 200 --config tiny

Trains one stage of the tiny model on a manifest (examples/data by default), and the same stage on the built-in
source, and reads `data_wait` of their metrics.jsonl: what `train.py` shows in its bar. Metrics are fetched at
every step (`log.log_every=1`), so that a step begins when the one before it has ended: with more steps a fetch the
host runs ahead of the device, and what it waits then for the next batch is no time that the device has lost. The
first ten steps, in which programs are compiled, are left out. `--config smoke` has a network so small that a step
takes a few dozen milliseconds: the hardest case. On a CPU the threads that read take the time of the step itself,
too, so the time of a step is shown as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.paths import ROOT
from janus_jax.configs import janus_tiny

EXAMPLES = ROOT / "examples" / "data" / "manifest.yaml"
SKIPPED = 10  # steps


def config_of(args: argparse.Namespace, manifest: str) -> ConfigDict:
    config = janus_tiny.get_config("smoke" if args.config == "smoke" else "")
    config.mesh.fsdp = 1
    config.stage_order = (args.stage,)
    config.stages[args.stage].update(steps=args.steps)
    config.log.update(log_every=1, save_every=args.steps, sample_every=0)
    config.eval.benchmarks = ()
    config.data.update(manifest=manifest, threads=args.threads)
    return config


def waited(run_dir: Path) -> dict[str, float]:
    """Of the steps after the first ones: share of the time that was waited for data, and milliseconds a step."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines][SKIPPED:]
    seconds = [record["tokens"] / record["tokens_per_s"] for record in records]
    waits = [s * record["data_wait"] for s, record in zip(seconds, records, strict=True)]
    return {
        "data_wait": sum(waits) / sum(seconds),
        "longest_ms": 1000 * max(waits),
        "step_ms": 1000 * statistics.median(seconds),
        "steps": len(records),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", default=str(EXAMPLES))
    parser.add_argument("--config", choices=("smoke", "tiny"), default="smoke")
    parser.add_argument("--stage", default="stage2")
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--threads", type=int, default=1, help="that read (config.data.threads)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    if args.steps <= SKIPPED:
        parser.error(f"--steps must be above {SKIPPED}: so many are left out")
    from janus_jax.run import train

    found = []
    for name, manifest in (("files", args.manifest), ("built in", "")):
        with tempfile.TemporaryDirectory() as scratch:
            train(config_of(args, manifest), Path(scratch) / "run", quiet=True)
            measured = waited(Path(scratch) / "run")
        found.append({"data": name, **measured, "load": os.getloadavg()[0]})
    print("| data | waits | longest wait, ms | ms a step | load |\n|---|---|---|---|---|")
    for each in found:
        print(
            f"| {each['data']} | {each['data_wait']:.2%} | {each['longest_ms']:.1f} | "
            f"{each['step_ms']:.0f} | {each['load']:.1f} |"
        )
    if args.json:
        settings = {name: getattr(args, name) for name in ("config", "stage", "steps", "threads")}
        result = {**settings, "runs": found}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
