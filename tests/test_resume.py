"""A run that was killed goes on as if nothing had happened, and another config is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Stage 2 alone of the smallest network, from random numbers: `stage_order` has no other stage.
ARGS = [
    "--config=configs/janus_tiny.py:smoke",
    "--config.stage_order=('stage2',)",
    "--config.stages.stage2.steps=14",
    "--config.stages.stage2.batch_size=2",
    "--config.log.save_every=4",
    "--config.log.log_every=1",
    "--config.eval.prompts=0",
    "--quiet",
]


def start(workdir: Path, *extra: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", *ARGS, "--workdir", str(workdir), *extra]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def losses(workdir: Path) -> list[tuple[int, float, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records]


def steps_done(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    process = start(workdir)
    assert process.wait() == 0, process.stderr.read()
    return workdir


def test_after_kill_9_the_losses_are_the_same_value_for_value(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    deadline = time.time() + 300
    while steps_done(workdir) < 6 and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 6 <= steps_done(workdir) < 14, "it must be killed in the middle"
    again = start(workdir)
    assert again.wait() == 0, again.stderr.read()
    assert losses(workdir) == losses(uninterrupted)
    assert [step for step, *_ in losses(workdir)] == list(range(1, 15))


def flip_a_bit(tree: Path) -> None:
    files = (tree / "ocdbt.process_0" / "d").iterdir()
    path = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_from_a_damaged_checkpoint_a_run_goes_back_to_the_one_before(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    stage = workdir / "checkpoints" / "stage2"
    assert sorted(p.name for p in stage.iterdir()) == ["12", "14"]
    flip_a_bit(stage / "14" / "state")  # of a finished stage, this is not read
    flip_a_bit(stage / "14" / "params")
    again = start(workdir)
    assert again.wait() == 0, again.stderr.read()
    assert losses(workdir) == losses(uninterrupted)
    message = again.stderr.read()
    assert len(message.strip().splitlines()) == 1
    assert "14 is damaged" in message and "step 12 is used instead" in message
    assert sorted(p.name for p in stage.iterdir()) == ["12", "14", "14.damaged"]


def test_another_config_in_the_same_directory_is_refused(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    process = start(uninterrupted, "--config.seed=5")
    assert process.wait() == 2
    message = process.stderr.read()
    assert "config.seed was 0, now 5" in message
    assert len(message.strip().splitlines()) == 1
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
