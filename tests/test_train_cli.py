"""train.py with bad input: one line on stderr, exit code 2, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parent.parent


def run(*args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "train.py", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--config", "configs/janus_tinny.py"], "Did you mean 'configs/janus_tiny.py'?"),
        (["--config=configs/janus_tiny.py:smok"], "Did you mean 'smoke'?"),
        (["--config.stages.stage2.stepz=3"], 'Did you mean "steps"'),
        (["--config.seed=abc"], "config.seed"),
        (["--config.model.preset=janus-tinyy"], "Did you mean 'janus-tiny'?"),
        (["--config", "configs/janus_pro_7b.py"], "--config.tokenizer"),
        (["--config", "configs/janus_tiny.py:stage2"], "stage1, which has not finished"),
        (["--config.mesh.fsdp=7"], "7"),
        (["stray"], "'stray'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, said, tmp_path):
    workdir = tmp_path / "run"
    done = run("--workdir", str(workdir), *args)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not workdir.exists()


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = run("--workdir", str(tmp_path))
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_help_shows_a_working_example():
    done = run("--help")
    assert done.returncode == 0
    assert "python train.py --config configs/janus_tiny.py" in done.stdout
