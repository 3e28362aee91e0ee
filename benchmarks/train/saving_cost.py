"""What saving every 100 steps costs a training: the same steps with a save in them and without, in turns.

    python -m benchmarks.train.saving_cost --dir /tmp/saving_cost --pairs 5 --json out.json

The real loop trains a stage of a config (stage 2 of janus_tiny) for 60 steps, from the same parameters: with a
checkpoint at step 30 (A) and without (B), in the order A B B A and so on; both are compiled before. Compared are
steps 20 to 59: the copy to the host at step 30, and the files and checksums that are written during the steps
after it. A difference of seconds is given as a share of 100 steps. CPU time is that of the whole process, with all
its threads: on a machine that does other work it is steadier than the wall clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.checkpoints import StageCheckpoints
from janus_jax.configs import janus_tiny
from janus_jax.models import init_params
from janus_jax.run.experiment import build
from janus_jax.run.stage_data import batches
from janus_jax.training import MetricsLog, make_step, run_stage

FROM, SAVED, STEPS = 20, 30, 59


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="", help="of janus_tiny, such as smoke")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dir", type=Path, required=True, help="is made, and removed afterwards")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.dir.mkdir(parents=True)
    config = janus_tiny.get_config(args.variant)
    config.mesh.fsdp = 1
    experiment = build(config)
    stage = next(s for s in experiment.stages if s.name == "stage2")
    step = make_step(experiment.model, stage, experiment.processor.tokenizer.pad_id)
    params = init_params(experiment.model, jax.random.key(0))
    data = batches(experiment, stage)
    stage = dataclasses.replace(stage, steps=STEPS + 1)
    blocked: list[float] = []
    save = StageCheckpoints.save

    def timed(*arguments, **options):
        began = time.perf_counter()
        result = save(*arguments, **options)
        if arguments[1] == SAVED:
            blocked.append(time.perf_counter() - began)
        return result

    StageCheckpoints.save = timed

    def run(name: str, save_every: int) -> tuple[float, float]:
        """(wall, CPU) seconds of steps FROM to STEPS."""
        times: dict[int, tuple[float, float]] = {}

        def noted(state, frozen, batch, done):
            if done in (FROM, STEPS):
                jax.block_until_ready(state)
                times[done] = (time.perf_counter(), time.process_time())
            return step(state, frozen, batch, done)

        directory = args.dir / name
        directory.mkdir()
        log = MetricsLog(directory)
        fresh = jax.tree.map(jnp.copy, params)  # the step donates them
        where: dict[str, Any] = {"save_every": save_every, "quiet": True}
        run_stage(stage, noted, fresh, data, directory / "c", log, experiment.mesh, **where)
        log.close()
        shutil.rmtree(directory)
        return tuple(b - a for a, b in zip(times[FROM], times[STEPS], strict=True))

    run("compiled", SAVED)
    blocked.clear()
    found: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    for pair in range(args.pairs):
        for name in ("with", "without") if pair % 2 == 0 else ("without", "with"):
            found[name].append(run(f"{name}{pair}", SAVED if name == "with" else 10**9))
            print(name, *(f"{t:.2f}" for t in found[name][-1]), flush=True)
    data.close()
    shutil.rmtree(args.dir)
    result = {"pairs": args.pairs, "load": round(os.getloadavg()[0], 1), "cpus": os.cpu_count()}
    for i, kind in enumerate(("wall", "cpu")):
        without = [t[i] for t in found["without"]]
        hundred = statistics.median(without) / (STEPS - FROM) * 100
        differences = [a[i] - b for a, b in zip(found["with"], without, strict=True)]
        cost = statistics.median(differences)
        result[kind] = {
            "seconds_of_100_steps": round(hundred, 3),
            "seconds_of_a_save": [round(d, 3) for d in sorted(differences)],
            "percent": round(100 * cost / hundred, 2),
        }
    result["save_returned_after"] = [round(b, 3) for b in sorted(blocked)]
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
