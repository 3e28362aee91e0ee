"""A full disk is one line at any moment, spares what was there, and is forgotten once there is room."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax import files
from janus_jax.checkpoints import finished_steps
from janus_jax.configs import janus_tiny
from janus_jax.errors import UserError
from janus_jax.files import atomic_write, write_json
from janus_jax.run import build, claim
from janus_jax.run.files import remove_leftovers
from janus_jax.training import MetricsLog

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parent.parent
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*args, **kwargs):
    raise FULL


# A disk of its own, of so many KB, in a namespace of its own: nobody else sees it.
DISK = (
    'mount -t tmpfs -o size="$1"k tmpfs "$2" && "$3" -c "$4" "$2"; rc=$?; cp -r "$2" "$5"; exit $rc'
)
SAVE = """
import shutil, sys
from types import SimpleNamespace
import numpy as np
# What is free now may be gone in a moment: the look beforehand finds enough.
shutil.disk_usage = lambda path: SimpleNamespace(free=10**15)
from janus_jax.checkpoints import StageCheckpoints
from janus_jax.errors import run_main

def main():
    checkpoints = StageCheckpoints(sys.argv[1] + "/stage")
    small = {f"w{i}": np.full(3, i, np.float32) for i in range(60)}
    checkpoints.save(1, small, {"step": np.int32(1)}, {"at": 1})
    big = small | {f"b{i}": np.full(3000, i, np.float32) for i in range(60)}
    checkpoints.save(2, big, {"mu": big}, {"at": 2})

run_main(main)
"""


def isolated():
    """The command that gives a process its own mounts, or None where that is not allowed."""
    command = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-r", "-m"]
    if not shutil.which("unshare"):
        return None
    works = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return command if works.returncode == 0 else None


@pytest.mark.parametrize("kilobytes", [380, 500, 900, 1500])
def test_a_disk_that_fills_up_while_orbax_writes_is_one_line(tmp_path, kilobytes):
    if (command := isolated()) is None:
        pytest.skip("cannot mount a disk of its own")
    disk, found = tmp_path / "disk", tmp_path / "found"
    disk.mkdir()
    arguments = ["sh", "-c", DISK, "sh", str(kilobytes), disk, sys.executable, SAVE, found]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.count("\n") == 1 and "no space left on the disk" in done.stderr
    assert [p.name for p in (found / "stage").iterdir()] == ["1"]
    assert finished_steps(found / "stage") == [1]


# Small files


@pytest.mark.parametrize("moment", ["write_bytes", "sync", "replace"])
def test_a_small_file_has_its_old_content_or_its_new_one(tmp_path, monkeypatch, moment):
    path = tmp_path / "scores.json"
    atomic_write(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(files if moment == "sync" else Path, moment, fail)
        with pytest.raises(UserError, match=r"no space left.*scores\.json"):
            write_json(path, {"new": 1})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_a_small_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    happened = []
    real_replace, real_fsync = Path.replace, os.fsync

    def fsync(descriptor):
        happened.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def replace(self, target):
        happened.append("renamed")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    atomic_write(tmp_path / "a.json", "x")
    assert [h if h == "renamed" else h.suffix for h in happened] == [".tmp", "renamed", ""]
    assert happened[-1] == tmp_path


def take(run_dir):
    config = janus_tiny.get_config("smoke")
    config.mesh.fsdp = 1
    with claim.lock(run_dir):
        claim.init_or_verify_run_dir(run_dir, config, build(config))


@pytest.mark.parametrize("leftover", [None, ".config.json.77.tmp", "config.tmp"])
def test_a_full_disk_at_the_first_write_does_not_spoil_the_directory(
    tmp_path, monkeypatch, leftover
):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(UserError, match=r"no space left.*config\.json"):
            take(run_dir)
    assert [path.name for path in run_dir.iterdir()] == [".lock"]
    if leftover:  # of a killed process, or of an earlier version on a full disk
        (run_dir / leftover).write_text("{")
    take(run_dir)
    take(run_dir)
    assert json.loads((run_dir / "config.json").read_text())["name"] == "janus_tiny_smoke"


# metrics.jsonl and TensorBoard


def test_metrics_on_a_full_disk_are_one_line_and_go_on_later(tmp_path, monkeypatch):
    rows = [{"stage": "a", "step": i, "loss": float(i)} for i in (1, 2)]
    log = MetricsLog(tmp_path)
    log.write(rows[:1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"no space left.*metrics\.jsonl"):
            log.write(rows[1:])
        with pytest.raises(UserError, match=r"no space left.*metrics\.jsonl"):
            log.start_stage("a", 1)
    log.close()
    log = MetricsLog(tmp_path)
    log.start_stage("a", 1)
    log.write(rows[1:])
    assert log.read() == rows


def test_tensorboard_on_a_full_disk_neither_waits_nor_complains_at_exit(tmp_path):
    code = """
import sys
from pathlib import Path
from janus_jax.training import MetricsLog
from janus_jax.training.metrics import _Board
full = sys.argv[1] == "full"
log = MetricsLog(Path(sys.argv[2]))
if full:
    log._board._file._writer = open("/dev/full", "wb")
for i in range(40):
    try:
        log.write([{"stage": "a", "step": i, "loss": float(i)}])
    except ValueError as error:
        print(type(error).__name__, error)
        break
"""
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    for state in ("full", "free"):
        done = subprocess.run(
            [sys.executable, "-c", code, state, tmp_path],
            capture_output=True,
            text=True,
            env=env,
            cwd=ROOT,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("UserError no space left") == (state == "full")
    events = max((tmp_path / "tensorboard").iterdir(), key=lambda p: p.stat().st_size).read_bytes()
    assert events.count(b"a/loss") == 40 and b"brain.Event:2" in events


def test_what_killed_writers_left_is_removed_when_a_run_is_opened(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "samples").mkdir()
    names = "config.json stages.json scores.json questions.json metrics.jsonl report.md".split()
    names += ["janus.json", "tokenizer.json", "checksums.json", "report_losses.png"]
    names += ["samples/stage3_000006.png", "samples/stage3_000006.json", "samples/question_a_0.png"]
    left = [(tmp_path / n).with_name(f".{Path(n).name}.{dead.pid}.tmp") for n in names]
    left.append(tmp_path / f".scores.json.{10**20}.tmp")
    kept = [f".scores.json.{os.getpid()}.tmp", ".scores.json.1.tmp", ".scores.json.tmp"]
    kept += [f"scores.json.{dead.pid}.tmp", f".notes.json.{dead.pid}.tmp", ".scores.json.0.tmp"]
    kept += [f".scores.json.0{dead.pid}.tmp", f".scores.json.-{dead.pid}.tmp", ".scores.json.x.tmp"]
    kept += [f".scores.json.{dead.pid}.tmp.old", f".scoresxjson.{dead.pid}.tmp", "scores.json"]
    kept += [f".vq_000006.png.{dead.pid}.tmp", f"samples/.scores.json.{dead.pid}.tmp"]
    kept = [tmp_path / name for name in kept]
    for path in [*left, *kept]:
        path.write_text("{}")
    directory, link = (tmp_path / f".{n}.{dead.pid}.tmp" for n in ("config.json", "report.md"))
    for path in (directory, link):
        path.unlink()
    directory.mkdir()
    link.symlink_to(tmp_path / "scores.json")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in [*kept, directory, link])
    assert [p for p in left if p.exists()] == [directory, link]
