"""A fine-tune that is killed with SIGKILL, and its command given again: not a bit is other than without."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

ROOT = Path(__file__).resolve().parent.parent
STEPS = 40
# What a clock says, and nothing else, may be other.
TIMED = {"tokens_per_s", "tokens_per_s_per_device", "tflops_per_s_per_device", "data_wait"}


def start(model, workdir, cache):
    flags = [
        "--config=finetune:lora_smoke",
        f"--config.init_from={model}",
        "--config.data.manifest=examples/data/manifest.yaml",
        "--config.data.held_out=0.2",
        "--config.eval.held_out_every=6",
        f"--config.stages.finetune.steps={STEPS}",
        "--config.log.save_every=5",
        "--config.log.log_every=1",
        f"--workdir={workdir}",
        "--quiet",
    ]
    return subprocess.Popen(
        [sys.executable, "train.py", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    said = process.communicate(timeout=400)[1]
    assert process.returncode == 0, said


def lines(run):
    """The lines of metrics.jsonl, of steps and of held-out data, without what a clock says."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMED} for line in found]


def steps_done(run):
    log = run / "metrics.jsonl"
    text = log.read_text() if log.exists() else ""
    return sum('"held_out"' not in line for line in text.splitlines())


def arrays(run):
    """path -> (dtype, shape, bytes) of the last checkpoint: parameters, the optimizer's state, counters."""
    import jax
    import numpy as np

    from janus_jax.checkpoints import storage

    found = {}
    for item in ("params", "state"):
        place = run / "checkpoints" / "finetune" / str(STEPS) / item
        tree = storage.read_tree(place, storage.read_shapes(place))
        for path, x in jax.tree.leaves_with_path(tree):
            x = np.asarray(x)
            found[item + jax.tree_util.keystr(path)] = (str(x.dtype), x.shape, x.tobytes())
    return found


def test_after_kill_9_losses_parameters_and_the_adapter_are_the_same_bits(smoke_model, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(smoke_model, whole, tmp_path))
    process = start(smoke_model, killed, tmp_path)
    checkpoints = killed / "checkpoints" / "finetune"
    saved = lambda: [p.name for p in checkpoints.glob("*") if p.name.isdecimal()]
    deadline = time.time() + 300
    # A checkpoint is whole, and steps were made after it that are lost.
    while time.time() < deadline and process.poll() is None:
        if saved() and steps_done(killed) % 5:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    assert saved() and str(STEPS) not in saved() and 5 < steps_done(killed) < STEPS
    assert not (killed / "adapter").exists()

    finish(start(smoke_model, killed, tmp_path))
    assert lines(killed) == lines(whole)
    steps = [line["step"] for line in lines(killed) if "held_out" not in line]
    assert steps == list(range(1, STEPS + 1))
    assert sum("held_out" in line for line in lines(killed)) > STEPS / 6
    assert arrays(killed) == arrays(whole)
    files = lambda run: {p.name: p.read_bytes() for p in (run / "adapter" / "finetune").iterdir()}
    assert files(killed) == files(whole)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files(whole))
