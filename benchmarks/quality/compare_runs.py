"""Scores of several runs side by side: each stage's, with their mean, as a Markdown table.

for s in 0 1 2; do python train.py --config.seed=$s --workdir runs/seed$s; done
python -m benchmarks.quality.compare_runs runs/seed0 runs/seed1 runs/seed2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.errors import UserError, run_main


def figures(scores: dict[str, Any]) -> dict[str, float]:
    """Name -> number, for everything in a scores.json that is worth comparing."""
    out = {}
    seconds = ("train_seconds", "scoring_seconds")
    out["minutes"] = sum(s.get(k, 0.0) for s in scores.values() for k in seconds) / 60
    out["peak memory, GiB"] = max(s.get("peak_memory_gib", 0.0) for s in scores.values())
    for stage, entry in scores.items():
        if "judge" in entry:
            for case, result in entry["judge"].items():
                out[f"judge: {case}"] = result["mean"]["plain"]
        if "mini_geneval" not in entry:
            continue
        out[f"{stage}: guidance"] = entry["cfg_weight"]
        for key, label in (("mini_geneval", "seen"), ("mini_geneval_held_out", "held out")):
            for task, result in entry.get(key, {}).items():
                out[f"{stage}: {label}, {task}"] = result["plain"]
                if task == "mean":
                    out[f"{stage}: {label}, mean, strict"] = result["strict"]
        for key, label in (
            ("questions", "questions"),
            ("questions_held_out", "held-out questions"),
        ):
            for kind, result in entry.get(key, {}).items():
                out[f"{stage}: {label}, {kind}"] = result["accuracy"]
                if "f1" in result:
                    for name in ("precision", "recall", "f1"):
                        out[f"{stage}: {label}, {kind}, {name}"] = result[name]
                if key == "questions":
                    out[f"{stage}: commonest answer, {kind}"] = result["majority"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="writes the same as JSON, too")
    args = parser.parse_args()
    for run in args.runs:
        if not (run / "scores.json").is_file():
            raise UserError(f"{run} has no scores.json: is it the directory of a finished run?")
    columns = [figures(json.loads((run / "scores.json").read_text())) for run in args.runs]
    print("| |", " | ".join(run.name for run in args.runs), "| mean |")
    print("|---|" + "---|" * (len(columns) + 1))
    rows = {}
    for name in dict.fromkeys(n for c in columns for n in c):
        values = [c.get(name, float("nan")) for c in columns]
        rows[name] = {"runs": values, "mean": float(np.mean(values))}
        print(f"| {name} |", " | ".join(f"{v:.2f}" for v in values), f"| {np.mean(values):.2f} |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
