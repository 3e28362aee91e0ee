"""What checksums cost: seconds to save and to restore a checkpoint, with and without them.

    python -m benchmarks.train.checkpoint_cost --gib 1 --repeats 3 --dir /tmp/checkpoint_cost

Variants take turns, so that a busy machine is as unfair to one as to the other. "sums" is the part of a save
that waits for the disk, computes and writes checksums; "sync" what of that is waiting for the disk, which a
machine that stops makes necessary with checksums or without. What was just written is in the page cache,
so that restoring is faster than from a cold disk, and checksums a larger part of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from janus_jax.checkpoints import StageCheckpoints, checksums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", type=Path, required=True, help="is made, and removed afterwards")
    args = parser.parse_args()
    args.dir.mkdir(parents=True)  # never one with something in it
    rng = np.random.default_rng(0)
    count = int(args.gib * 2**30 / 4 / 16)
    params = {f"w{i}": rng.standard_normal(count, np.float32) for i in range(16)}
    times: dict[str, list[float]] = {}

    def timed(name, function):
        def run(*arguments, **options):
            began = time.perf_counter()
            result = function(*arguments, **options)
            times.setdefault(name, []).append(time.perf_counter() - began)
            return result

        return run

    write, sync = checksums.write, checksums.sync
    checksums.write = timed("save: sums", write)
    checksums.sync = timed("sync", sync)
    try:
        for repeat in range(1, args.repeats + 1):
            directory = args.dir / str(repeat)
            with StageCheckpoints(directory, keep=1) as stage:
                times["sync"] = []
                timed("save", stage.save)(1, params, {"step": np.int32(1)}, {})
                times.setdefault("save: sync", []).append(sum(times.pop("sync")))
            for verify in (True, False) if repeat % 2 else (False, True):
                with StageCheckpoints(directory, keep=1, verify=verify) as stage:
                    name = f"restore, verify={verify}"
                    timed(name, stage.restore)(1, params, {"step": np.int32(0)}, None)
            shutil.rmtree(directory)
    finally:
        shutil.rmtree(args.dir)
    load = os.getloadavg()[0]
    print(
        f"{args.gib} GiB, {os.cpu_count()} CPUs, load {load:.1f}, {args.repeats} repeats, seconds"
    )
    for name, values in sorted(times.items()):
        if name != "sync":
            shown = ", ".join(f"{v:.2f}" for v in values)
            print(f"{name:24} median {statistics.median(values):.2f}  ({shown})")


if __name__ == "__main__":
    main()
