"""Several processes in one job: joining, training like one, stopping and failing together."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from janus_jax.checkpoints import StageCheckpoints
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.parallel import first_only, initialize, multihost

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parent.parent
TWO = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


# Joining


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (TWO, "each process would train alone"),
        ({"JAX_NUM_PROCESSES": "2"}, "each process would train alone"),
        ({"JAX_PROCESS_ID": "1"}, "each process would train alone"),
        ({"JAX_COORDINATOR_ADDRESS": "nonsense", **TWO}, "must be host:port, not 'nonsense'"),
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:abc", **TWO}, "must be host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:99999", **TWO}, "must be host:port"),
        ({"JAX_COORDINATOR_ADDRESS": ":80", **TWO}, "must be host:port"),
        (
            {"JAX_COORDINATOR_ADDRESS": "x.invalid:80", "JANUS_JOIN_TIMEOUT": "1", **TWO},
            "no host 'x.invalid'",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:80", "JANUS_JOIN_TIMEOUT": "0", **TWO},
            "JANUS_JOIN_TIMEOUT must be at least 1",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:80", "JAX_NUM_PROCESSES": "two"},
            "JAX_NUM_PROCESSES must be an integer",
        ),
    ],
    ids=str,
)
def test_a_job_that_cannot_be_joined_is_one_line(env, message, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("called"))
    with pytest.raises(UserError, match=message) as error:
        initialize(env)
    assert "\n" not in str(error.value)


def test_one_process_that_says_so_is_alone():
    assert initialize({"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is False


@pytest.mark.parametrize("index", ["0", "1"])
def test_who_waits_for_others_in_vain_ends_with_one_line(index):
    env = os.environ | TWO | {"JAX_PROCESS_ID": index, "JANUS_JOIN_TIMEOUT": "1"}
    env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_PLATFORMS": "cpu"}
    code = "from janus_jax.parallel import initialize; initialize()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: waited 1 s for the other")
    assert len(done.stderr.splitlines()) == 1


# What only the first process does


def test_what_the_first_process_finds_reaches_all(monkeypatch):
    assert first_only(lambda: {"a": [1]}) == {"a": [1]}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    sent = []
    monkeypatch.setattr(multihost, "_broadcast", lambda value: sent.append(value) or value)

    def refuse():
        raise UserError("no room")

    assert first_only(lambda: 3) == 3
    for error, work in ((UserError, refuse), (ZeroDivisionError, lambda: 1 / 0)):
        with pytest.raises(error):
            first_only(work)
    assert sent == [{"value": 3}, {"user": "no room"}, {"run": "division by zero"}]
    # In the other process.
    monkeypatch.setattr(multihost, "is_first", lambda: False)
    for answer, error, match in (
        ({"user": "no room"}, UserError, "^no room$"),
        ({"run": "division by zero"}, multihost.RunError, "process 0 failed: division by zero"),
    ):
        monkeypatch.setattr(multihost, "_broadcast", lambda value, answer=answer: answer)
        with pytest.raises(error, match=match):
            first_only(lambda: pytest.fail("not here"))


# Ending


def how_it_ends(error, monkeypatch, capsys):
    """(exit code, what is said) where a process of a job fails with `error`."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(multihost, "GRACE", 0.0)
    with pytest.raises(SystemExit) as ended, multihost.ending_together():
        raise error
    return ended.value.code, capsys.readouterr().err.rstrip()


def behind(error, cause):
    error.__cause__ = cause
    return error


GLOO = (
    "UNKNOWN: Gloo AllGather failed: [external/gloo/transport/tcp/pair.cc:547] Connection closed by "
    "peer [127.0.0.1]:5133"
)
LOST = [
    ValueError(GLOO),
    RuntimeError(GLOO),
    jax.errors.JaxRuntimeError(GLOO),
    jax.errors.JaxRuntimeError("FAILED_PRECONDITION: lost the connection"),
    Exception("DEADLINE_EXCEEDED: Barrier timed out. Id: save:3. # of tasks that reached it: 1/2"),
    RuntimeError("UNAVAILABLE: failed to connect to all addresses"),
    ValueError("INTERNAL: ncclCommInitRank: NCCL error: remote process exited"),
    ValueError("the coordination service is down"),
    OSError(104, "Connection reset by peer"),
    ExceptionGroup("two threads", [KeyError("a"), ValueError(GLOO)]),
    behind(KeyError("item"), ValueError(GLOO)),
    behind(UserError("cannot read the checkpoint x, it may be damaged"), ValueError(GLOO)),
]


@pytest.mark.parametrize("error", LOST, ids=lambda e: f"{type(e).__name__} {e}"[:50])
def test_a_lost_process_is_one_line_however_it_arrives(error, monkeypatch, capsys):
    code, said = how_it_ends(error, monkeypatch, capsys)
    assert code == 1 and len(said.splitlines()) == 1
    assert said.startswith("error: another process of the job is gone")


FULL = OSError(errno.ENOSPC, "No space left on device", "run/changes.jsonl")
# As train.py alone in a job ends with it.
KNOWN = [
    FULL,
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    PermissionError(errno.EACCES, "Permission denied", "run/scores.json"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "a", None, "b"),
    UserError("no model in NCCL/x, Connection refused"),
    RunError("stage2 step 3: the loss is\nnot finite"),
]


@pytest.mark.parametrize("error", KNOWN, ids=str)
def test_a_job_ends_as_a_single_process_does(error, monkeypatch, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as alone:
        run_main(fail)
    line = capsys.readouterr().err.rstrip()
    assert line.startswith("error: ") and len(line.splitlines()) == 1
    code, said = how_it_ends(error, monkeypatch, capsys)
    assert (code, said) == (alone.value.code, f"{line} [process 0]")
    # And what only the first process does ends the others with the same line.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    sent = []
    monkeypatch.setattr(multihost, "_broadcast", lambda value: sent.append(value) or value)
    with pytest.raises(type(error)):
        first_only(fail)
    assert sent == [{"user" if code == 2 else "run": line.removeprefix("error: ")}]


@pytest.mark.parametrize(
    "error", [KeyError("connection"), OSError("no errno"), ZeroDivisionError()]
)
def test_a_bug_keeps_its_traceback(error, monkeypatch, capsys):
    code, said = how_it_ends(error, monkeypatch, capsys)
    assert code == 1 and said.startswith("Traceback") and type(error).__name__ in said


# Whole jobs


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(
    workdir: Path,
    *extra: str,
    count: int = 2,
    devices: int = 1,
    scored: bool = False,
    config: str | Path = "configs/janus_tiny.py:smoke",
) -> list[subprocess.Popen]:
    """`count` processes with `devices` each."""
    args = [
        f"--config={config}",
        "--config.stage_order=('stage2',)",
        "--config.stages.stage2.batch_size=2",
        "--config.data.streams=2",
        "--config.log.log_every=1",
        *([] if scored else ["--config.eval.benchmarks=()"]),
        "--quiet",
        f"--workdir={workdir}",
        *extra,
    ]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
        env |= {"JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "train.py", *args],
            cwd=ROOT,
            env=env | ({"JAX_PROCESS_ID": str(i)} if count > 1 else {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def end(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes, and what each said but for lines of the collectives, the compiler and the setup."""
    said = [p.communicate(timeout=400)[1] for p in processes]
    others = ("[Gloo]", "spmd_partitioner.cc", ", attention blocked, remat ")
    usual = lambda line: not line or any(other in line for other in others)
    lines = [[line for line in s.splitlines() if not usual(line)] for s in said]
    return [p.returncode for p in processes], ["\n".join(part) for part in lines]


def losses(workdir: Path) -> list[tuple[int, float]]:
    path = workdir / "metrics.jsonl"
    records = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [(r["step"], r["loss"]) for r in records]


def wait_for_steps(workdir: Path, count: int, processes: list[subprocess.Popen]) -> None:
    deadline, path = time.time() + 300, workdir / "metrics.jsonl"
    while (path.read_text().count("\n") if path.exists() else 0) < count and time.time() < deadline:
        assert all(p.poll() is None for p in processes)
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_stop_and_go_on_as_if_nothing_had_happened(tmp_path):
    run = tmp_path / "run"
    processes = start(run, "--config.stages.stage2.steps=5000", "--config.log.save_every=9000")
    wait_for_steps(run, 3, processes)
    processes[1].send_signal(signal.SIGTERM)  # one of them is enough
    codes, said = end(processes)
    saved = len(losses(run))
    assert codes == [0, 0]
    assert all(f"stopped by SIGTERM, stage2 step {saved} is saved" in s for s in said)
    steps = f"--config.stages.stage2.steps={saved + 3}"
    assert end(start(run, steps)) == ([0, 0], ["", ""])
    assert end(start(tmp_path / "whole", steps)) == ([0, 0], ["", ""])
    assert losses(run) == losses(tmp_path / "whole") and len(losses(run)) == saved + 3
    assert (run / "report.md").exists()
    # One process goes on where the two were.
    assert end(start(run, f"--config.stages.stage2.steps={saved + 5}", count=1)) == ([0], [""])
    assert losses(run)[: saved + 3] == losses(tmp_path / "whole")
    assert len(losses(run)) == saved + 5


# Four devices, by number of processes: the programs and the rows of a step are the same.
FOUR = [(1, 4), (2, 2), (4, 1)]
ROWS = ("--config.stages.stage2.batch_size=4", "--config.data.streams=4")


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.parametrize("tensor", [1, 2])
def test_any_number_of_processes_trains_the_same(tensor, tmp_path):
    """With `tensor` over several processes, those hold the same rows."""
    mesh, found = f"--config.mesh.tensor={tensor}", {}
    for count, devices in FOUR:
        workdir = tmp_path / f"{count}"
        said = end(start(workdir, *ROWS, mesh, count=count, devices=devices))
        assert said == ([0] * count, [""] * count)
        found[count] = losses(workdir)
    assert len(found[1]) == 6
    for count in (2, 4):
        np.testing.assert_allclose(found[count], found[1], rtol=1e-5, err_msg=f"{count} processes")


WITH_ADAPTER = """
from janus_jax.adapters import LORA_PARAMS
from janus_jax.configs import janus_tiny

def get_config():
    config = janus_tiny.get_config("smoke")
    stage = config.stages.stage2
    stage.trainable = LORA_PARAMS
    with stage.unlocked():
        stage.options.lora = dict(rank=2, alpha=4.0)
    return config
"""


@pytest.mark.slow
def test_two_processes_train_an_adapter_and_the_first_one_writes_it(tmp_path):
    (tmp_path / "config.py").write_text(WITH_ADAPTER)
    config, tensors = tmp_path / "config.py", []
    for count, devices in ((1, 2), (2, 1)):
        run = tmp_path / f"{count}"
        for _ in range(2):  # the second time, nothing is left to do
            codes, said = end(start(run, config=config, count=count, devices=devices))
            assert codes == [0] * count and not any("warning" in text for text in said), said
        tensors.append(load_file(run / "adapter" / "stage2" / "adapter_model.safetensors"))
    assert tensors[0].keys() == tensors[1].keys() and len(tensors[0]) == 14
    for name, value in tensors[0].items():
        np.testing.assert_allclose(tensors[1][name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.multidevice
def test_what_two_processes_began_one_and_four_end_alike(tmp_path):
    whole = tmp_path / "whole"
    two = dict(count=2, devices=2)
    assert end(start(whole, *ROWS, **two))[0] == [0, 0]
    begun = tmp_path / "begun"
    assert end(start(begun, *ROWS, "--config.stages.stage2.steps=3", **two))[0] == [0, 0]
    for count, devices in FOUR:
        workdir = tmp_path / f"{count}"
        shutil.copytree(begun, workdir)
        said = end(start(workdir, *ROWS, count=count, devices=devices))
        assert said == ([0] * count, [""] * count)
        np.testing.assert_allclose(losses(workdir), losses(whole), rtol=1e-5)


def scores(workdir: Path) -> dict:
    """scores.json without what depends on the machine."""
    found = json.loads((workdir / "scores.json").read_text())
    machine = ("train_seconds", "scoring_seconds", "peak_memory_gib")
    return {n: {k: v for k, v in e.items() if k not in machine} for n, e in found.items()}


def files_of(workdir: Path) -> dict[str, bytes]:
    """Every file of a run that is no checkpoint, but those with times or places in them, by name."""
    found = (p for p in workdir.rglob("*") if p.is_file() and "checkpoints" not in p.parts)
    other = ("tensorboard", "metrics.jsonl", "scores.json", "report", ".lock", "changes.jsonl")
    files = {str(p.relative_to(workdir)): p.read_bytes() for p in found}
    return {name: data for name, data in files.items() if not name.startswith(other)}


def parameters(workdir: Path, step: int) -> dict[str, np.ndarray]:
    with StageCheckpoints(workdir / "checkpoints" / "stage2") as checkpoints:
        params = checkpoints.restore_params(step)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
@pytest.mark.parametrize("victims", [(0, 1), (1,)], ids=["both", "one"])
def test_a_job_that_was_killed_ends_as_one_that_was_not(victims, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    processes = start(run, "--config.stages.stage2.steps=5000", "--config.log.save_every=3")
    wait_for_steps(run, 7, processes)
    for victim in victims:
        processes[victim].send_signal(signal.SIGKILL)
    codes, _ = end(processes)
    assert all(codes[victim] == -signal.SIGKILL for victim in victims) and 0 not in codes
    last = losses(run)[-1][0] + 2
    args = (f"--config.stages.stage2.steps={last}", "--config.log.save_every=3")
    assert end(start(run, *args, scored=True))[0] == [0, 0]
    assert end(start(whole, *args, scored=True))[0] == [0, 0]
    assert [step for step, _ in losses(run)] == list(range(1, last + 1))  # each once
    assert losses(run) == losses(whole)
    found, wanted = parameters(run, last), parameters(whole, last)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    # What the first process alone writes: scores, grids, pictures of questions.
    assert scores(run) == scores(whole) and "questions_held_out" in scores(run)["stage2"]
    assert files_of(run) == files_of(whole)
    assert f"samples/stage2_{last:06d}.png" in files_of(run)
    assert len(list((whole / "tensorboard").iterdir())) == 1
    assert (run / "report.md").exists() and not list(run.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_dies_the_other_says_so_and_ends(victim, tmp_path):
    run = tmp_path / "run"
    processes = start(run, "--config.stages.stage2.steps=9000")
    wait_for_steps(run, 3, processes)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.time()
    codes, said = end(processes)
    assert codes[victim] == -9 and codes[1 - victim] == 1
    assert time.time() - began < 90
    if victim:  # without its coordinator, JAX may be the first to say so, in its own words
        assert said[0].startswith("error: another process of the job is gone")
        assert len(said[0].splitlines()) == 1


@pytest.mark.slow
def test_all_processes_refuse_what_the_first_one_finds_wrong(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    codes, said = end(start(tmp_path))
    assert codes == [2, 2] and all("not empty and holds no run" in s for s in said)
    assert all(len(s.splitlines()) == 1 for s in said)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
