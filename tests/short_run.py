"""A run of `train.py` in a process of its own: 14 steps of stage 2, the smallest network, from random numbers."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARGS = [
    "--config=configs/janus_tiny.py:smoke",
    "--config.stage_order=('stage2',)",
    "--config.stages.stage2.steps=14",
    "--config.stages.stage2.batch_size=2",
    "--config.log.save_every=4",
    "--config.log.log_every=1",
    "--config.eval.benchmarks=()",
    "--quiet",
]


def start(workdir, *extra: str, **env: str) -> subprocess.Popen:
    """Starts it, with more flags and variables; its stderr is text that can be read."""
    return subprocess.Popen(
        [sys.executable, "train.py", *ARGS, "--workdir", str(workdir), *extra],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
        stderr=subprocess.PIPE,
        text=True,
    )
