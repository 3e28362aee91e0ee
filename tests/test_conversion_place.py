"""Where a conversion goes: what may be replaced, what is left alone, and a full disk."""

import errno
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from converting import convert
from safetensors import SafetensorError

from janus_jax.cli import convert as convert_torch_weights
from janus_jax.errors import UserError, run_main

pytestmark = pytest.mark.heavy


def test_a_taken_place_is_left_alone(official, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    for to in ("janus_jax", "official"):
        with pytest.raises(UserError, match="cannot write"):
            convert(official, tmp_path / "out", to)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("to", "writer", "error"),
    [
        # What safetensors and TensorStore raise on a full disk: text is all that tells.
        (
            "official",
            "save_file",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
        ("official", "save_file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        ("janus_jax", "save_lazily", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        (
            "janus_jax",
            "save_lazily",
            ValueError("RESOURCE_EXHAUSTED: No space left on device [28]"),
        ),
    ],
)
def test_a_full_disk_leaves_nothing_and_is_one_line(
    official, tmp_path, monkeypatch, capsys, to, writer, error
):
    def full(*args, **kwargs):
        (place,) = (path for path in tmp_path.iterdir() if path.name != "official")
        (place / "half").write_bytes(b"written")
        raise error

    monkeypatch.setattr(f"janus_jax.interop.conversion.write.{writer}", full)
    flags = ["--src", official, "--dst", tmp_path / "out", "--to", to]
    monkeypatch.setattr(sys, "argv", ["convert_torch_weights.py", *map(str, flags)])
    with pytest.raises(SystemExit) as exit:
        run_main(convert_torch_weights.main)
    assert exit.value.code == 2
    *bar, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no space left on the disk") and "error" not in "".join(bar)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


@pytest.fixture
def script(monkeypatch, capsys):
    """script(*flags) -> (exit code, the last line on stderr) of convert_torch_weights.py, in this process."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["convert_torch_weights.py", *map(str, flags)])
        code = 0
        try:
            run_main(convert_torch_weights.main)
        except SystemExit as stop:
            code = stop.code
        return code, (capsys.readouterr().err.splitlines() or [""])[-1]

    return run


def everything(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_an_earlier_model_is_replaced_and_nothing_else_with_it(official, tmp_path, script):
    native = tmp_path / "ours"
    assert script("--src", official, "--dst", native)[0] == 0
    assert script("--src", official, "--dst", native)[0] == 0
    shutil.copyfile(official / "config.json", native / "config.json")
    shutil.copyfile(official / "model.safetensors", native / "model.safetensors")
    before = everything(tmp_path)
    for said in ("config.json, model.safetensors", "model.safetensors"):
        code, line = script("--src", official, "--dst", native)
        assert code == 2 and f"ours: it holds {said}, which this program did not write" in line
        assert everything(tmp_path) == before
        (native / "config.json").unlink(missing_ok=True)
        before.pop(native / "config.json", None)
    (native / "model.safetensors").unlink()
    assert script("--src", official, "--dst", native)[0] == 0


@pytest.mark.parametrize("to", ["janus_jax", "hf"])
@pytest.mark.parametrize(
    ("dst", "said"),
    [
        ("official", "is"),
        ("official/", "is"),
        ("official/../official", "is"),
        ("link", "is"),
        ("official/new", "is inside of"),
        ("official/new/deep", "is inside of"),
        ("link/new", "is inside of"),
    ],
)
def test_the_place_is_not_in_the_source(official, tmp_path, monkeypatch, script, to, dst, said):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("official")
    before = everything(tmp_path)
    for src in (official, "official/", "link"):
        code, line = script("--src", src, "--dst", dst, "--to", to)
        assert code == 2 and line.startswith(
            f"error: cannot write to {dst}: it {said} {src}, the model"
        )
    assert everything(tmp_path) == before and not (official / "new").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tokenizer", "nope"], "--tokenizer nope: there is no such file"),
        (["--tokenizer", "official"], "official must be a file, but it is a directory"),
        (["--parity", "official"], "official must be a file, but it is a directory"),
        (["--parity", "nope.npz"], "nope.npz is no recording: there is no such file"),
        (["--parity", "official/config.json"], "is no recording (.npz of arrays)"),
    ],
)
def test_other_files_are_told_before_the_conversion(
    official, tmp_path, monkeypatch, script, flags, said
):
    monkeypatch.chdir(tmp_path)
    code, line = script("--src", "official", "--dst", "new", *flags)
    assert code == 2 and said in line and "or pass --tokenizer" not in line
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


def test_a_place_beside_the_source_with_a_longer_name_is_apart(official, script):
    assert script("--src", official, "--dst", f"{official}2")[0] == 0


@pytest.mark.parametrize("to", ["janus_jax", "official"])
def test_too_small_a_disk_is_seen_before_writing(official, tmp_path, monkeypatch, to):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match="3 MB are needed, 1 MB are free; nothing there was"):
        convert(official, tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]
