"""Where models and results are written: refused before the work, links and mount points kept."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from janus_jax.errors import UserError
from janus_jax.files import atomic_write
from janus_jax.interop.conversion import output_dir
from janus_jax.interop.conversion.output_dir import (
    check_output_dir,
    is_being_written,
    remove_stale_staging,
    write_output_dir,
)
from janus_jax.places import check_directory, check_file, checked, user_cache

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parent.parent


def build(directory, replaceable=None):
    with write_output_dir(directory, replaceable) as new:
        new.mkdir()
        (new / "janus.json").write_text("new")
        (new / "params").mkdir()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    return tmp_path


@pytest.fixture
def closed(here):
    """A directory that cannot be written, with one in it that can."""
    (here / "closed" / "own").mkdir(parents=True)
    (here / "closed").chmod(0o555)
    if os.access(here / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    yield here / "closed"
    (here / "closed").chmod(0o755)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://b", "object stores other than gs:// are not supported"),
        ("hdfs://h/x", "object stores other than gs:// are not supported"),
        ("GS://b/x", "write the address of a bucket as gs://b/x"),
        ("gs:/bucket/run", "write the address of a bucket as gs://bucket/run"),
    ],
)
def test_an_object_store_is_no_directory(path, message):
    with pytest.raises(UserError, match=message) as error:
        checked(path, "--workdir")
    assert "\n" not in str(error.value) and str(error.value).startswith("--workdir ")


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r'needs gcsfs: pip install "janus-jax\[gcs\]"'):
        checked("gs://bucket/run", "--workdir")


@pytest.mark.parametrize(
    "path", ["", "runs/a", "/mnt/gs/b", "a:b", "C:/x", "user/model", Path("x")]
)
def test_paths_are_paths(path):
    assert checked(path, "--workdir") == Path(path).absolute()


BAD = [
    ("file", "it is a file"),
    ("file/x", "Not a directory"),
    ("file/x/y", "Not a directory"),
    ("loop", "Too many levels of symbolic links"),
    ("loop/x", "Too many levels of symbolic links"),
    ("x" * 300, "File name too long"),
    ("/proc/nothing", ""),  # each kernel says something else
]


@pytest.mark.parametrize(("name", "said"), BAD, ids=lambda value: value[:8])
def test_what_cannot_be_a_directory_is_told_before_the_work(here, name, said):
    with pytest.raises(UserError, match=rf"^--out .* cannot be a directory to write in: {said}"):
        check_directory(name, "--out")
    with pytest.raises(UserError, match=f"cannot write to .*: {said}"):
        check_output_dir(name)
    with pytest.raises(UserError, match="--json"):
        check_file(f"{name}/x.json", "--json")
    assert names(here) == ["file", "loop"]


def test_a_directory_that_may_not_be_written_is_refused(closed):
    for directory in (closed, closed / "new", closed / "new" / "deep"):
        with pytest.raises(UserError, match="Permission denied"):
            check_directory(directory, "--out")
        with pytest.raises(UserError, match="Permission denied"):
            check_output_dir(directory)
    build(closed / "own")  # in a parent that cannot be written
    build(closed / "own", lambda path: True)
    assert names(closed / "own") == ["janus.json", "params"]


def test_a_good_place_is_not_touched(here):
    for name in ("new", "new/deep", "."):
        check_directory(name, "--out", ["image_000.png", "file"])
        check_output_dir(f"{name}/model")
    check_file("x.json", "--json")
    check_file("file", "--json")
    assert names(here) == ["file", "loop"]


def test_a_directory_in_the_place_of_a_file_is_refused(here):
    Path("out/image_001.png").mkdir(parents=True)
    check_directory("out", "--out", ["image_000.png"])
    with pytest.raises(UserError, match=r"image_001\.png is a directory there"):
        check_directory("out", "--out", ["image_000.png", "image_001.png"])
    with pytest.raises(UserError, match="it is a directory"):
        check_file("out", "--json")


def test_a_failed_write_leaves_the_older_file(here):
    def save(path):
        path.write_text("half")
        raise OSError("stop")

    Path("a").write_text("old")
    with pytest.raises(OSError, match="stop"):
        atomic_write(Path("a"), save)
    atomic_write(Path("x" * 250), lambda path: path.write_text("a name of the longest kind"))
    assert Path("a").read_text() == "old"
    assert names(here) == ["a", "file", "loop", "x" * 250]


def test_there_is_no_cache_without_a_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert user_cache() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert user_cache() == Path("/x/janus_jax")


# Building a model directory


@pytest.mark.parametrize(
    "kind", ["missing", "deep", "empty", "link", "dangling", "new_disk", "long"]
)
def test_what_is_built_gets_its_place(here, kind):
    target = here / {"deep": "a/b/c", "long": "y" * 250}.get(kind, "target")
    asked = here / "asked" if kind in ("link", "dangling") else target
    if kind in ("empty", "link", "new_disk"):
        target.mkdir()
    if kind == "new_disk":
        (target / "lost+found").mkdir()
    if asked != target:
        asked.symlink_to(target)
    before = target.stat().st_ino if target.exists() else None
    build(asked)
    assert (target / "janus.json").read_text() == "new"
    assert [n for n in names(target) if n != "lost+found"] == ["janus.json", "params"]
    assert before in (None, target.stat().st_ino)  # the directory itself is never replaced
    assert asked == target or asked.is_symlink()
    assert not [n for n in names(here) if n.endswith(".tmp")]


def test_only_what_may_be_replaced_is(here):
    Path("model").mkdir()
    Path("model/janus.json").write_text("old")
    Path("model/extra").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        build("model")
    build("model", lambda path: (path / "janus.json").is_file())
    assert names(Path("model")) == ["janus.json", "params"]
    assert Path("model/janus.json").read_text() == "new"


def test_what_comes_while_a_model_is_built_is_not_replaced(here):
    Path("model").mkdir()
    with (
        pytest.raises(UserError, match="cannot write to model: it exists and is not empty"),
        write_output_dir("model") as new,
    ):
        new.mkdir()
        Path("model/letter").touch()
    assert names(here / "model") == ["letter"]


@pytest.mark.parametrize("name", ["a/b/model", "model"])
def test_a_failure_leaves_everything_as_it_was(here, name):
    Path("model").mkdir()
    Path("model/janus.json").write_text("old")
    with (
        pytest.raises(UserError, match=rf"^{name}/params is bad$"),
        write_output_dir(name, lambda path: True) as new,
    ):
        new.mkdir()
        (new / "half").touch()
        raise UserError(f"{new}/params is bad")
    assert names(here) == ["file", "loop", "model"]
    assert names(here / "model") == ["janus.json"]


def test_a_mount_point_is_filled(here):
    """The kernel refuses to rename it; as a stand-in where mounting is not allowed, nothing is."""
    Path("disk").mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", "disk"], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting is not allowed")
    try:
        build("disk")
        build("disk", lambda path: True)
        assert names(here / "disk") == ["janus.json", "params"]
        assert os.path.ismount("disk")
    finally:
        subprocess.run(["umount", "disk"], check=True)


# What killed processes leave

BUILDER = """
import sys, time
from janus_jax.interop.conversion.output_dir import write_output_dir
with write_output_dir(sys.argv[1], lambda path: True) as new:
    new.mkdir()
    (new / "janus.json").write_text("new")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def builder(here):
    """Starts a process that builds a directory and does not finish."""
    started = []

    def start(directory):
        process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, directory],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("there", [False, True])
def test_the_workshop_of_a_living_process_stays_and_of_a_killed_one_goes(here, builder, there):
    if there:
        Path("model").mkdir()
    process = builder("model")
    home = here / "model" if there else here
    (staging,) = (n for n in names(home) if n.endswith(".tmp"))
    remove_stale_staging(home)
    remove_stale_staging(home, "model")
    assert is_being_written(here / "model") and not is_being_written(here / "other")
    with pytest.raises(UserError, match="another process is writing there now"):
        build("model")
    build("other")  # of no concern
    assert staging in names(home)
    process.kill()
    process.wait()
    assert staging in names(home) and not is_being_written(here / "model")
    remove_stale_staging(home, "other")
    assert staging in names(home)
    build("model")
    assert names(here / "model") == ["janus.json", "params"]
    assert not [n for n in names(here) if n.endswith(".tmp")]


def age(path, seconds):
    then = time.time() - seconds
    for inner in [*path.rglob("*"), path]:
        os.utime(inner, (then, then))


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("name", "hours", "goes"),
    [
        (".model.{dead}.tmp", 48, True),  # as earlier versions left them
        (".model.{dead}.abc.tmp", 48, True),
        (".model.{dead}.tmp", 1, False),  # its process may be on another machine
        (".model.{own}.tmp", 48, False),
        (".model.99999999999999999999.tmp", 48, False),
        (".model.tmp", 48, False),
        ("model.{dead}.tmp", 48, False),
        (".other.{dead}.tmp", 48, False),
    ],
)
def test_without_a_lock_only_what_is_surely_left_goes(here, name, hours, goes):
    staging = here / name.format(dead=dead_pid(), own=os.getpid())
    (staging / "params").mkdir(parents=True)
    age(staging, hours * 3600)
    remove_stale_staging(here, "model")
    assert staging.exists() is not goes


def test_a_link_with_the_name_of_a_workshop_is_left_alone(here):
    Path("mine").mkdir()
    Path("mine/letter").touch()
    age(here / "mine", 48 * 3600)
    Path(f".model.{dead_pid()}.tmp").symlink_to("mine")
    remove_stale_staging(here, "model")
    assert names(here / "mine") == ["letter"]


@pytest.mark.parametrize("moves", range(1, 5))
def test_an_exchange_that_is_killed_between_two_moves_ends_whole(here, monkeypatch, moves):
    """After each of its renames, the next process finds the old model, or the new one."""
    Path("model/params").mkdir(parents=True)
    Path("model/janus.json").write_text("old")
    done, rename = [], Path.rename

    class Killed(BaseException):
        pass

    def moving(self, target):
        if "lock.new" not in self.name:
            done.append(self)
            if len(done) > moves:
                raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", moving)
        patch.setattr(output_dir, "_clear", lambda staging: None)
        patch.setattr(output_dir.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            build("model", lambda path: True)
    remove_stale_staging(here / "model", "model")
    assert names(here / "model") == ["janus.json", "params"]
    assert Path("model/janus.json").read_text() == ("old" if moves < 3 else "new")
