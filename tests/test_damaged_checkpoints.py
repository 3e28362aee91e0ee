"""Checkpoints that are not as they were written: found, passed over with a word, and never deleted."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grain
import jax
import numpy as np
import pytest

from janus_jax.checkpoints import StageCheckpoints, checksums, storage
from janus_jax.errors import UserError
from janus_jax.files import DamagedError

pytestmark = pytest.mark.heavy

OLD, NEW, WHOLE, BROKEN = 10, 20, "10", "20"
RNG = np.random.default_rng(0)
PARAMS = {"decoder": {"kernel": RNG.standard_normal((64, 130), np.float32), "bias": np.ones(3)}}
STATE = {"mu": RNG.standard_normal((300, 30), np.float32), "step": np.int32(0)}


def tree(step):
    return jax.tree.map(lambda x: (x + step).astype(x.dtype), (PARAMS, STATE))


def numbers():
    return iter(grain.MapDataset.range(1000).shuffle(seed=3).repeat().to_iter_dataset())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A stage with two whole steps, and the data that follow each."""
    directory = tmp_path_factory.mktemp("whole") / "stage"
    data, following = numbers(), {}
    with StageCheckpoints(directory) as checkpoints:
        for step in (OLD, NEW):
            for _ in range(step):
                next(data)
            checkpoints.save(step, *tree(step), data, {"loss": 0.5})
            position = data.get_state()
            following[step] = [next(data) for _ in range(5)]
            data.set_state(position)
    return directory, following


# What can happen to a step. Each damage gets the step's directory.


def biggest(step, item):
    files = (step / item / "ocdbt.process_0" / "d").iterdir()
    return max(files, key=lambda path: path.stat().st_size)


FILES = {
    "array-of-params": lambda step: biggest(step, "params"),
    "array-of-state": lambda step: biggest(step, "state"),
    "names-of-params": lambda step: step / "params" / "_METADATA",
    "names-of-state": lambda step: step / "state" / "_METADATA",
    "index-of-params": lambda step: step / "params" / "manifest.ocdbt",
    "process-index": lambda step: step / "params" / "ocdbt.process_0" / "manifest.ocdbt",
    "tree-of-state": lambda step: next((step / "state" / "d").iterdir()),
    "position": lambda step: step / "data" / "process_0-of-1.json",
    "metrics": lambda step: step / "metrics" / "metrics",
}


def rewrite(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def unreadable(path):
    path.unlink()
    path.mkdir()


WAYS = {
    "truncated": rewrite(lambda b: b[: len(b) // 2]),
    "one-byte-short": rewrite(lambda b: b[:-1]),
    "emptied": rewrite(lambda b: b""),
    "garbage": rewrite(lambda b: b"\xff{not json" * 50),
    "zeroed": rewrite(lambda b: bytes(len(b))),
    "deleted": Path.unlink,
    "unreadable": unreadable,
}
CASES = {
    f"{name}-{way}": lambda step, file=file, change=change: change(file(step))
    for name, file in FILES.items()
    for way, change in WAYS.items()
}


def flip(path, count):
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(count)
    bits = rng.choice(8 * len(data), count, replace=False)
    np.bitwise_xor.at(data, bits // 8, np.left_shift(1, bits % 8).astype(np.uint8))
    path.write_bytes(data.tobytes())


for name in ("array-of-params", "array-of-state"):
    for count in (1, 100, 10_000):
        CASES[f"{name}-{count}-bits"] = lambda step, name=name, count=count: flip(
            FILES[name](step), count
        )
for item in ("params", "state", "data", "metrics", "params/ocdbt.process_0", "state/d"):
    CASES[f"without-{item}"] = lambda step, item=item: shutil.rmtree(step / item)


def edit_position(**fields):
    def edit(step):
        path = FILES["position"](step)
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


CASES["position-negative"] = edit_position(next_index=-5)
CASES["position-another"] = edit_position(next_index=3)
CASES["empty-directory"] = lambda step: [shutil.rmtree(step), step.mkdir()]
CASES["higher-copy"] = lambda step: step.rename(step.with_name("99"))
CASES["checksums-emptied"] = lambda step: (step / checksums.NAME).write_bytes(b"")
CASES["checksums-truncated"] = lambda step: rewrite(lambda b: b[:-30])(step / checksums.NAME)
CASES["checksums-list"] = lambda step: (step / checksums.NAME).write_text("[1, 2]")
CASES["checksums-deep"] = lambda step: (step / checksums.NAME).write_text("[" * 10**5)
CASES["checksums-flipped"] = lambda step: flip(step / checksums.NAME, 1)
# What nobody could see without checksums, or need not: some bytes are never read.
HIDDEN = [
    *(
        name
        for name in CASES
        if name.startswith("process-index") or ("array" in name and "short" in name)
    ),
    *(name for name in CASES if name.endswith("-bits") or ("array" in name and "zeroed" in name)),
    *(name for name in CASES if name.startswith(("checksums", "metrics"))),
    *("position-another", "higher-copy"),
]


def damaged_copy(saved, tmp_path, case):
    directory = tmp_path / "stage"
    shutil.copytree(saved[0], directory)
    CASES[case](directory / BROKEN)
    return directory


def restore(directory, data=None, **options):
    with StageCheckpoints(directory, **options) as checkpoints:
        return checkpoints.restore_newest(*tree(0), data)


def assert_step(found, step):
    assert found[0] == step
    jax.tree.map(np.testing.assert_array_equal, found[1:], tree(step))


def test_there_are_enough_cases():
    assert len(CASES) >= 80


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_newest_step_is_passed_over_and_kept(saved, tmp_path, capfd, case):
    directory = damaged_copy(saved, tmp_path, case)
    newest = max((p.name for p in directory.iterdir()), key=int)
    files = {p.relative_to(directory / newest) for p in (directory / newest).rglob("*")}
    data = numbers()
    assert_step(restore(directory, data), OLD)
    assert [next(data) for _ in range(5)] == saved[1][OLD]
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"{newest} is damaged: " in err or f"{newest}/" in err
    assert f"it is now {newest}.damaged, and step {OLD} is used instead" in err
    assert sorted(p.name for p in directory.iterdir()) == [WHOLE, f"{newest}.damaged"]
    kept = directory / f"{newest}.damaged"
    assert {p.relative_to(kept) for p in kept.rglob("*")} == files
    # The next time there is nothing to say.
    assert_step(restore(directory), OLD)
    assert capfd.readouterr() == ("", "")


def without_checksums(directory):
    for path in directory.glob(f"*/{checksums.NAME}"):
        path.unlink()


@pytest.mark.parametrize("case", [name for name in CASES if name not in HIDDEN])
def test_steps_of_earlier_versions_have_no_checksums_and_are_passed_over_too(
    saved, tmp_path, capfd, case
):
    directory = damaged_copy(saved, tmp_path, case)
    without_checksums(directory)
    data = numbers()
    assert_step(restore(directory, data), OLD)
    assert [next(data) for _ in range(5)] == saved[1][OLD]
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [[], ["params"], ["params", "state", "data", "metrics"]])
def test_a_higher_step_that_is_not_one_is_passed_over(saved, tmp_path, capfd, content):
    directory = tmp_path / "stage"
    shutil.copytree(saved[0], directory)
    (directory / "99").mkdir()
    for item in content:
        (directory / "99" / item).mkdir()
    (directory / "100").write_text("a file")
    assert_step(restore(directory, numbers()), NEW)
    assert capfd.readouterr().err.count("\n") == 1
    assert sorted(p.name for p in directory.iterdir()) == [WHOLE, "100", BROKEN, "99.damaged"]


def test_what_orbax_notes_for_itself_may_be_lost(saved, tmp_path, capfd):
    for change in (*WAYS.values(),):
        directory = tmp_path / "stage"
        shutil.copytree(saved[0], directory)
        for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            change(directory / BROKEN / name)
        assert_step(restore(directory), NEW)
        assert capfd.readouterr() == ("", "")
        shutil.rmtree(directory)


def break_all(directory):
    for step in (WHOLE, BROKEN):
        flip(biggest(directory / step, "params"), 1)


def test_without_any_whole_step_nothing_is_moved(saved, tmp_path, capfd):
    directory = tmp_path / "stage"
    shutil.copytree(saved[0], directory)
    break_all(directory)
    with pytest.raises(
        UserError, match=r"no whole checkpoint.*20 is damaged.*10 is damaged"
    ) as error:
        restore(directory)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")
    assert sorted(p.name for p in directory.iterdir()) == [WHOLE, BROKEN]


def test_a_step_that_is_asked_for_must_be_whole(saved, tmp_path):
    directory = damaged_copy(saved, tmp_path, "array-of-params-1-bits")
    with StageCheckpoints(directory) as checkpoints:
        for read in (
            lambda: checkpoints.restore(NEW, *tree(0), None),
            lambda: checkpoints.restore_params(NEW),
        ):
            with pytest.raises(DamagedError, match=r"20 is damaged: params/.*checksum"):
                read()
        checkpoints.restore_params(OLD)
        assert checkpoints.latest_step() == NEW
    assert sorted(p.name for p in directory.iterdir()) == [WHOLE, BROKEN]


def test_the_parameters_alone_need_no_whole_state(saved, tmp_path, capfd):
    directory = damaged_copy(saved, tmp_path, "array-of-state-1-bits")
    with StageCheckpoints(directory) as checkpoints:
        step, params = checkpoints.restore_newest_params()
    assert_step((step, params, tree(NEW)[1]), NEW)
    assert capfd.readouterr() == ("", "")
    flip(biggest(directory / BROKEN, "params"), 1)
    with StageCheckpoints(directory) as checkpoints:
        step, params = checkpoints.restore_newest_params()
    assert_step((step, params, tree(OLD)[1]), OLD)
    assert "and step 10 is used instead" in capfd.readouterr().err


def test_checking_can_be_switched_off(saved, tmp_path, capfd):
    directory = damaged_copy(saved, tmp_path, "array-of-params-1-bits")
    step, params, _ = restore(directory, verify=False)
    assert step == NEW and capfd.readouterr() == ("", "")
    different = jax.tree.map(lambda a, b: int((a != b).sum()), params, tree(NEW)[0])
    assert sum(jax.tree.leaves(different)) == 1


def test_damage_is_kept_beside_earlier_damage(saved, tmp_path, capfd):
    directory = damaged_copy(saved, tmp_path, "without-data")
    (directory / f"{BROKEN}.damaged").mkdir()
    (directory / f"{BROKEN}.damaged2").mkdir()
    shutil.copytree(directory / BROKEN, directory / "30")
    assert_step(restore(directory), OLD)
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 2 and "30.damaged," in err[0] and "20.damaged3," in err[1]
    assert (directory / f"{BROKEN}.damaged3" / "params").is_dir()


def test_training_goes_on_after_a_damaged_step_and_saves_it_again(saved, tmp_path):
    directory = damaged_copy(saved, tmp_path, "array-of-state-100-bits")
    with StageCheckpoints(directory) as checkpoints:
        checkpoints.restore_newest(*tree(0), None)
        assert checkpoints.save(NEW, *tree(NEW), {})
        assert_step((NEW, *checkpoints.restore(NEW, *tree(0), {})), NEW)
    assert sorted(p.name for p in directory.iterdir()) == [WHOLE, BROKEN, "20.damaged"]


def test_whole_files_that_cannot_be_read_are_left_alone(saved, tmp_path, monkeypatch):
    directory = tmp_path / "stage"
    shutil.copytree(saved[0], directory)

    def fail(self, *args, **kwargs):
        raise ValueError("a bug of a library")

    monkeypatch.setattr(storage.ocp.CheckpointManager, "restore", fail)
    with pytest.raises(UserError, match="a bug of a library"):
        restore(directory)
    assert sorted(p.name for p in directory.iterdir()) == [WHOLE, BROKEN]


# The sums themselves


def test_every_bit_of_every_chunk_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "CHUNK", 16)
    content = bytes(range(70))
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "b"
    file.write_bytes(content)
    (tmp_path / "empty").touch()
    (tmp_path / "unlisted").write_text("x")
    checksums.write(tmp_path, ["a", "empty"], step=3)
    assert checksums.damage(tmp_path) is None and checksums.intact(tmp_path)
    assert checksums.damage(tmp_path, step=4) == "it is a copy of step 3"
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert checksums.damage(tmp_path) == "a/b differs from its checksum"
    assert checksums.damage(tmp_path, "empty") is None
    file.write_bytes(content)
    assert checksums.damage(tmp_path) is None
    sums = (tmp_path / checksums.NAME).read_bytes()
    found = []
    for bit in range(0, 8 * len(sums), 3):
        changed = bytearray(sums)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / checksums.NAME).write_bytes(changed)
        found.append(checksums.damage(tmp_path))
    # A blank may become another blank.
    assert found.count(None) <= len(found) // 20
    (tmp_path / checksums.NAME).unlink()
    assert checksums.damage(tmp_path) is None and not checksums.intact(tmp_path)


# What keeps a process from reading is no damage: the step stays where it is, and so does the run.

HINDRANCES = "EACCES EPERM EIO ESTALE EMFILE ENFILE ENOMEM EINTR ETIMEDOUT".split()


def assert_hindered(error, name, directory):
    assert not isinstance(error, DamagedError)
    assert "\n" not in str(error) and str(directory) in str(error)
    assert str(error).count(os.strerror(getattr(errno, name))) == 1
    assert sorted(p.name for p in directory.iterdir()) == [WHOLE, BROKEN]


@pytest.mark.parametrize("name", HINDRANCES)
def test_an_error_of_reading_is_no_damage(saved, tmp_path, monkeypatch, capfd, name):
    directory = tmp_path / "stage"
    shutil.copytree(saved[0], directory)

    def fail(*args, **kwargs):
        code = getattr(errno, name)
        raise OSError(code, os.strerror(code), "a file")

    # The sums, the list of sums, the look at what is there; last Orbax, where there are no sums.
    for place, method in ((checksums, "_sum"), (Path, "read_bytes"), (Path, "is_dir")):
        with monkeypatch.context() as patch:
            patch.setattr(place, method, fail)
            with StageCheckpoints(directory) as checkpoints:
                for read in (
                    lambda: checkpoints.restore_newest(*tree(0), None),
                    checkpoints.restore_newest_params,
                    lambda: checkpoints.restore(NEW, *tree(0), None),
                ):
                    with pytest.raises(UserError) as error:
                        read()
                    assert_hindered(error.value, name, directory)
    without_checksums(directory)
    monkeypatch.setattr(storage.ocp.CheckpointManager, "restore", fail)
    with pytest.raises(UserError) as error:
        restore(directory)
    assert_hindered(error.value, name, directory)
    assert capfd.readouterr() == ("", "")


def test_what_may_not_be_read_is_no_damage(saved, tmp_path):
    directory = tmp_path / "stage"
    shutil.copytree(saved[0], directory)
    command = [sys.executable, __file__, str(directory)]
    if os.geteuid() == 0:  # who may read everything
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv")
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", rights, "--inh-caps", rights, *command]
    root = Path(__file__).resolve().parent.parent
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr


def try_all_without_rights(directory):
    """Takes the rights of one file or directory after the other, and reads."""
    places = {name: file(directory / BROKEN) for name, file in FILES.items()}
    places |= {
        item: directory / BROKEN / item for item in ("", "params", "state", "data", "params/d")
    }
    for sums in (True, False):
        if sums:
            places["sums"] = directory / BROKEN / checksums.NAME
        else:
            without_checksums(directory)
            del places["sums"]
        for name, place in places.items():
            mode = place.stat().st_mode
            for verify in (True, False):
                place.chmod(0)
                try:
                    found = restore(directory, numbers(), verify=verify)
                except Exception as caught:
                    error = caught
                else:
                    error = None
                place.chmod(mode)
                unread = name in ("sums", "metrics") and not (sums and verify)
                assert (error is None) == unread or name.endswith("index"), (
                    name,
                    sums,
                    verify,
                    error,
                )
                if error is None:
                    assert_step(found, NEW)
                else:
                    assert isinstance(error, UserError), (name, sums, verify, repr(error))
                    assert_hindered(error, "EACCES", directory)


if __name__ == "__main__":
    try_all_without_rights(Path(sys.argv[1]))
