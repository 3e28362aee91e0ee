"""A run in a bucket (gs://): checkpoints, small files, the lock, and whole runs, against an emulator."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from short_run import start

from janus_jax import gcs
from janus_jax.checkpoints import StageCheckpoints, finished_steps, is_written, load_model
from janus_jax.configs import finetune
from janus_jax.errors import RunError, UserError
from janus_jax.processing import build_word_tokenizer
from janus_jax.run import bucket as bucket_module
from janus_jax.run.bucket import Lock, Mirror
from janus_jax.run.experiment import build
from janus_jax.run.manifest_config import with_manifest

pytest.importorskip("gcsfs", reason="needs gcsfs")
pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
import gcs_emulator

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "data" / "manifest.yaml"
PARAMS = {"w": jnp.arange(24.0).reshape(4, 6), "b": jnp.zeros(3)}
STATE = {"step": jnp.array(0), "m": jnp.ones((4, 6))}


@pytest.fixture(scope="module")
def bucket():
    with gcs_emulator.for_this_process() as found:
        yield found


@pytest.fixture
def place(bucket, request):
    """(the bucket, an address in it that nothing has used)."""
    name = request.node.name.partition("[")[0][5:40] + str(time.monotonic_ns())
    return bucket, gcs.absolute(f"{bucket.url}/{name}")


def key(path) -> str:
    return str(path).removeprefix("gs://").partition("/")[2]


# Checkpoints


def saved(directory, *steps, **options):
    with StageCheckpoints(directory, **options) as checkpoints:
        for step in steps:
            params = PARAMS | {"b": jnp.full(3, float(step))}
            checkpoints.save(step, params, STATE, {"next_index": step}, {"loss": 1.0 / step})


def newest(directory):
    data = {}
    with StageCheckpoints(directory) as checkpoints:
        found = checkpoints.restore_newest(PARAMS, STATE, data)
    return found and (found[0], np.asarray(found[1]["b"]).tolist(), data["next_index"])


@pytest.mark.heavy
def test_steps_are_saved_kept_and_read(place):
    bucket, directory = place
    assert newest(directory) is None and finished_steps(directory) == []
    saved(directory, 1, 2, 3)
    assert finished_steps(directory) == [2, 3]
    assert not bucket.names(key(directory / "1") + "/")
    assert newest(directory) == (3, [3.0] * 3, 3)


@pytest.mark.heavy
def test_a_step_without_its_mark_never_was(place):
    """As a process leaves it that was killed while it wrote."""
    bucket, directory = place
    saved(directory, 1, 2)
    bucket.remove(key(directory / "2" / "commit_success.txt"))
    assert finished_steps(directory) == [1] and not is_written(directory / "2")
    assert newest(directory) == (1, [1.0] * 3, 1)
    # On a busy machine a client asks twice, and the emulator takes the second write after the removal.
    for _ in range(3):
        if not (left := bucket.names(key(directory / "2") + "/")):
            break
        assert newest(directory)[0] == 1
    assert not left
    saved(directory, 2)  # nor does the next run trip over it
    assert newest(directory)[0] == 2


def flip_a_bit(bucket, prefix):
    name = max(bucket.names(prefix), key=lambda name: len(bucket.read(name)))
    content = bytearray(bucket.read(name))
    content[len(content) // 2] ^= 1
    bucket.write(name, bytes(content))


def lose_an_object(bucket, prefix):
    bucket.remove(next(n for n in bucket.names(prefix) if n.endswith("manifest.ocdbt")))


def lose_the_data(bucket, prefix):
    step = prefix.rpartition("params")[0]
    bucket.remove(f"{step}data/process_0-of-1.json")


SLOW = pytest.mark.slow


@pytest.mark.heavy
@pytest.mark.parametrize(
    "ruin",
    [
        flip_a_bit,
        pytest.param(lose_an_object, marks=SLOW),
        pytest.param(lose_the_data, marks=SLOW),
    ],
)
def test_a_damaged_step_is_moved_aside_and_the_one_before_used(ruin, place, capsys):
    bucket, directory = place
    saved(directory, 1, 2)
    ruin(bucket, key(directory / "2" / "params"))
    assert newest(directory) == (1, [1.0] * 3, 1)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "2 is damaged" in said and "it is now 2.damaged, and step 1 is used" in said
    assert finished_steps(directory) == [1]
    assert bucket.names(key(directory / "2.damaged"))
    assert newest(directory)[0] == 1  # it stays where it is
    assert bucket.names(key(directory / "2.damaged"))


def test_what_is_to_precede_the_mark_does(place):
    bucket, directory = place
    seen = []
    note = lambda: seen.append((is_written(directory / "1"), bool(bucket.names(key(directory)))))
    saved(directory, 1, before_commit=note)
    assert seen == [(False, True)] and is_written(directory / "1")


def test_what_fails_before_the_mark_fails_the_save(place):
    def fail():
        raise RunError("another run has taken over")

    _, directory = place
    with pytest.raises(RunError, match="another run has taken over"):
        saved(directory, 1, before_commit=fail)
    assert finished_steps(directory) == []


@pytest.mark.slow
def test_a_step_that_was_copied_here_is_compared(place, tmp_path):
    bucket, directory = place
    saved(directory, 1)
    for name in bucket.names(key(directory)):
        path = tmp_path / Path(name).relative_to(key(directory))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.read(name))
    assert newest(tmp_path) == (1, [1.0] * 3, 1)
    files = (path for path in (tmp_path / "1" / "params").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match="differs from its checksum"):
        newest(tmp_path)


@pytest.mark.slow
def test_a_step_that_was_copied_there_is_compared(place, tmp_path):
    bucket, directory = place
    saved(tmp_path, 1)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            bucket.write(key(directory / path.relative_to(tmp_path).as_posix()), path.read_bytes())
    assert newest(directory) == (1, [1.0] * 3, 1)
    flip_a_bit(bucket, key(directory / "1" / "params"))
    with pytest.raises(UserError, match="differs from its checksum"):
        newest(directory)


# The lock


def write_lock(bucket, address, **fields):
    bucket.write(key(address / ".lock"), json.dumps({"pid": 1, "host": "other", **fields}).encode())


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(bucket_module, "REFRESH", 0.1)
    monkeypatch.setattr(bucket_module, "STALE", 1.0)


def test_a_second_writer_is_refused_and_told_who_holds_the_run(place):
    bucket, address = place
    with Lock(address), pytest.raises(UserError) as error, Lock(address):
        pass
    assert f"is in use by another run (process {os.getpid()} on " in str(error.value)
    assert f"delete {address}/.lock" in str(error.value) and "\n" not in str(error.value)
    assert bucket.names(key(address)) == []
    with Lock(address):
        assert bucket.names(key(address))


def test_a_lock_that_another_machine_keeps_alive_is_respected(place, impatient, capsys):
    _, address = place
    boot = bucket_module._boot
    with Lock(address), pytest.MonkeyPatch.context() as patch:
        # This process refreshes it, and does not recognize itself.
        patch.setattr(bucket_module, "_on_this_machine", lambda holder: False)
        with pytest.raises(UserError, match="in use by another run"), Lock(address):
            pass
    assert boot and "looking for up to 1 s whether it is alive" in capsys.readouterr().err


def test_a_lock_that_nobody_keeps_alive_is_taken_over(place, impatient):
    bucket, address = place
    write_lock(bucket, address)
    with Lock(address) as lock:
        lock.check()
        assert json.loads(bucket.read(key(address / ".lock")))["pid"] == os.getpid()


def test_a_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(place):
    bucket, address = place
    dead = subprocess.Popen(["true"])
    dead.wait()
    import socket

    write_lock(bucket, address, pid=dead.pid, host=socket.gethostname(), boot=bucket_module._boot())
    with Lock(address):
        pass


def test_a_damaged_lock_is_one_that_nobody_keeps_alive(place, impatient):
    bucket, address = place
    bucket.write(key(address / ".lock"), b"{")
    with Lock(address):
        pass


def test_who_has_lost_the_lock_writes_no_more(place, impatient, tmp_path):
    bucket, address = place
    mirror = Mirror(address, tmp_path)
    with pytest.raises(RunError, match="another run has taken over"), mirror.hold():
        (tmp_path / "config.json").write_text("{}")
        write_lock(bucket, address)
        deadline = time.monotonic() + 30
        while not mirror._lock._lost and time.monotonic() < deadline:
            time.sleep(0.05)
        mirror.push()
    assert bucket.names(key(address)) == [key(address / ".lock")]
    assert json.loads(bucket.read(key(address / ".lock")))["host"] == "other"


# The small files


def test_files_come_and_go_with_the_bucket(place, tmp_path):
    bucket, address = place
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    mirror = Mirror(address, one)
    with mirror.hold():
        (one / "config.json").write_text("{}")
        (one / "samples").mkdir()
        (one / "samples" / "a_1.png").write_bytes(b"png")
        (one / "tensorboard").mkdir()
        (one / "tensorboard" / "events").write_bytes(b"e")
        (one / ".metrics.jsonl.1.tmp").touch()
        (one / "stages.json").touch()  # empty
        mirror.push()
        (one / "metrics.jsonl").write_text("1\n")
    wanted = [
        "config.json",
        "metrics.jsonl",
        "samples/a_1.png",
        "stages.json",
        "tensorboard/events",
    ]
    assert bucket.names(key(address)) == [key(address / name) for name in wanted]
    with Mirror(address, two).hold():
        here = sorted(p.relative_to(two).as_posix() for p in two.rglob("*") if p.is_file())
        assert here == wanted[:4]  # TensorBoard is of no use to a run that goes on
        assert (two / "metrics.jsonl").read_text() == "1\n"
        (two / "metrics.jsonl").write_text("1\n2\n")
    assert bucket.read(key(address / "metrics.jsonl")) == b"1\n2\n"


def test_what_was_not_changed_is_not_copied_again(place, tmp_path, monkeypatch):
    _, address = place
    mirror, sent = Mirror(address, tmp_path), []
    with mirror.hold():
        for name in ("tokenizer.json", "config.json", "changes.jsonl"):
            (tmp_path / name).write_text("{}")
        send = mirror._send
        monkeypatch.setattr(mirror, "_send", lambda names: (sent.extend(names), send(names)))
        mirror.push()
        assert sent == ["changes.jsonl", "config.json", "tokenizer.json"]
        mirror.push()
        assert len(sent) == 3


def test_what_is_no_run_is_left_alone(place, tmp_path):
    bucket, address = place
    bucket.write(key(address / "holiday.jpg"), b"jpg")
    with (
        pytest.raises(UserError, match="is not empty and holds no run"),
        Mirror(address, tmp_path).hold(),
    ):
        pass
    assert bucket.names(key(address)) == [key(address / "holiday.jpg")]


def test_a_fine_tune_takes_the_tokenizer_of_a_model_in_a_bucket(place):
    bucket, address = place
    config = finetune.get_config("lora")
    config.update(init_from=str(address), tokenizer="")
    config.data.manifest = str(EXAMPLES)
    config = with_manifest(config)
    with pytest.raises(UserError, match=r"is no model directory, it has no tokenizer\.json"):
        build(config)
    tokenizer = build_word_tokenizer(["heron"])
    bucket.write(key(address / "tokenizer.json"), tokenizer.to_json().encode())
    found = build(config).processor.tokenizer
    assert found.encode("heron") == tokenizer.encode("heron")
    assert found.unknown_words("heron egret") == ["egret"]


# Whole runs

TENSORSTORE = "Using GOOGLE_AUTH_TOKEN_FOR_TESTING"


def end(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Exit code, and the lines that were said."""
    said = process.communicate(timeout=500)[1].splitlines()
    usual = (TENSORSTORE, "attention blocked")  # the second: what was chosen for the machine
    return process.returncode, [line for line in said if line and not any(x in line for x in usual)]


def losses(text: bytes) -> list[tuple[int, float, float]]:
    records = map(json.loads, text.decode().splitlines())
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("local") / "run"
    assert end(start(workdir)) == (0, [])
    return losses((workdir / "metrics.jsonl").read_bytes())


def in_bucket(bucket, address):
    return losses(bucket.read(key(address / "metrics.jsonl")))


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_run_in_a_bucket_is_that_in_a_directory_and_can_be_built_on(place, local):
    bucket, address = place
    assert end(start(address)) == (0, [])
    assert in_bucket(bucket, address) == local
    names = {n.removeprefix(key(address) + "/") for n in bucket.names(key(address))}
    assert {"report.md", "stages.json", "checkpoints/stage2/14/commit_success.txt"} <= names
    assert ".lock" not in names
    assert load_model(address).origin["step"] == 14
    code, said = end(start(address, "--config.seed=5"))
    assert code == 2 and len(said) == 1
    assert said[0].startswith(
        f"error: {address} holds the run of another config (config.seed was 0"
    )
    # Damaged, it goes back.
    flip_a_bit(bucket, key(address / "checkpoints" / "stage2" / "14" / "params"))
    code, said = end(start(address))
    assert code == 0 and len(said) == 1 and "step 12 is used instead" in said[0]
    assert in_bucket(bucket, address) == local


def wait_for(bucket, address, step, process):
    mark = key(address / "checkpoints" / "stage2" / str(step) / "commit_success.txt")
    while mark not in bucket.names(key(address)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.subprocess
def test_after_kill_9_another_machine_goes_on_value_for_value(place, local, tmp_path):
    bucket, address = place
    (tmp := tmp_path / "tmp").mkdir()
    process = start(address, TMPDIR=str(tmp))
    wait_for(bucket, address, 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = in_bucket(bucket, address)
    assert 4 <= len(done) < 14 and done == local[: len(done)]
    assert key(address / ".lock") in bucket.names(key(address))
    shutil.rmtree(tmp), tmp.mkdir()  # of that machine, nothing is left
    assert end(start(address, TMPDIR=str(tmp))) == (0, [])
    assert in_bucket(bucket, address) == local
    assert not list(tmp.glob("janus_jax_run_*"))


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_second_run_is_refused_and_sigterm_saves(place):
    bucket, address = place
    never = "--config.log.save_every=99"
    process = start(address, never, "--config.stages.stage2.steps=5000")
    while key(address / "config.json") not in bucket.names(key(address)):
        assert process.poll() is None
        time.sleep(0.05)
    code, said = end(start(address, never))
    assert code == 2 and len(said) == 1
    assert "is in use by another run (process " in said[0] and f"{process.pid} on" in said[0]
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    done = in_bucket(bucket, address)
    assert code == 0 and f"stage2 step {len(done)} is saved" in said[-1]
    assert finished_steps(address / "checkpoints" / "stage2") == [len(done)]
    assert end(start(address, f"--config.stages.stage2.steps={len(done) + 2}"))[0] == 0
    assert len(in_bucket(bucket, address)) == len(done) + 2


# What cannot be


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("address", "env", "message"),
    [
        pytest.param("gs://none/run", {}, "there is no bucket none", id="bucket"),
        pytest.param("gs://", {}, "give the name of a bucket", id="name"),
        pytest.param(
            "gs://bucket/run",
            {"STORAGE_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": "/none"},
            "no credentials",
            id="credentials",
        ),
        pytest.param(
            "gs://bucket/run",
            {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"},
            "cannot be reached",
            marks=SLOW,
            id="network",
        ),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line(address, env, message, bucket):
    code, said = end(start(address, **env))
    assert code == 2 and len(said) == 1
    assert said[0].startswith(f"error: --workdir {address}") and message in said[0]
