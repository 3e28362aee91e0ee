"""A run that was killed goes on as if nothing had happened, and another config is refused."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from short_run import start

pytestmark = pytest.mark.subprocess


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
    assert len(message.strip().splitlines()) == 2  # after that of what was chosen for the machine
    assert "14 is damaged" in message and "step 12 is used instead" in message
    assert sorted(p.name for p in stage.iterdir()) == ["12", "14", "14.damaged"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_first_and_the_same_command_goes_on(number, code, uninterrupted, tmp_path):
    workdir, never = tmp_path / "run", "--config.log.save_every=99"
    process = start(workdir, never)
    while steps_done(workdir) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate()[1]
    done = steps_done(workdir)
    assert process.returncode == code and 3 <= done < 14, said
    assert f"stopped by {number.name}, stage2 step {done} is saved; run the same command" in said
    assert len(said.strip().splitlines()) <= 3  # what was asked for, and what was done
    again = start(workdir, never)
    assert again.wait() == 0, again.stderr.read()
    assert losses(workdir) == losses(uninterrupted)


@pytest.mark.slow
def test_a_run_that_met_nan_goes_on_with_what_its_message_says(tmp_path):
    workdir = tmp_path / "run"
    ruin = ("--config.stages.stage2.learning_rate=1e6", "--config.log.save_every=1")
    for _ in range(2):  # the same command meets the same numbers
        process = start(workdir, *ruin)
        said = process.communicate()[1]
        assert process.returncode == 1 and len(said.strip().splitlines()) == 1, said
    field = "stages.stage2.learning_rate"
    assert f"add --config.{field}=1e+05 --allow_change={field} to the same command" in said
    again = start(workdir, f"--config.{field}=1e-3", f"--allow_change={field}")
    said = again.communicate()[1]
    assert again.returncode == 0, said
    assert f"changed in this run: config.{field} was 1000000.0, now 0.001" in said
    assert f"| {field} | 1000000.0 | 0.001 | yes |" in (workdir / "report.md").read_text()


def test_another_config_in_the_same_directory_is_refused(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    process = start(uninterrupted, "--config.seed=5")
    assert process.wait() == 2
    message = process.stderr.read()
    assert "config.seed was 0, now 5" in message
    assert len(message.strip().splitlines()) == 1
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
