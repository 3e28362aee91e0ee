"""What `Janus.load` takes: conversions kept, found again without network, or in memory if need be."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from janus_jax.checkpoints import load_model
from janus_jax.errors import UserError
from janus_jax.interop import load_checkpoint, native_directory
from janus_jax.interop.conversion import cache as cache_module
from janus_jax.interop.conversion.output_dir import write_output_dir
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import write_native
from janus_jax.processing import build_word_tokenizer

pytestmark = pytest.mark.heavy

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"


def put(directory):
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, directory / name)
    (directory / "tokenizer.json").write_text(build_word_tokenizer("a red cat".split()).to_json())
    return directory


@pytest.fixture
def torch_model(tmp_path):
    return put(tmp_path / "torch")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JANUS_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory of ours."""
    directory = tmp_path_factory.mktemp("cache")
    source = open_source(put(directory / "torch"))
    write_native(source, directory / "model", *source.processor())
    return directory / "model"


@pytest.fixture(scope="module")
def loaded(model):
    return load_model(model)


def same(one, other):
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert jax.tree.map(lambda x: x.dtype, one.params) == jax.tree.map(
        lambda x: x.dtype, other.params
    )
    assert (one.config, one.processor, one.tokenizer_json) == (
        other.config,
        other.processor,
        other.tokenizer_json,
    )


@pytest.mark.parametrize("obstacle", ["under a file", "no home", "disk full"])
def test_a_cache_that_cannot_be_written_is_a_warning(
    torch_model, cache, loaded, tmp_path, monkeypatch, capsys, obstacle
):
    if obstacle == "under a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("JANUS_JAX_CACHE", str(tmp_path / "file" / "cache"))
    elif obstacle == "no home":
        monkeypatch.delenv("JANUS_JAX_CACHE")
        monkeypatch.setattr(cache_module, "user_cache", lambda: None)
    else:
        usage = lambda path: type("Usage", (), {"free": 1000})
        monkeypatch.setattr(cache_module.shutil, "disk_usage", usage)
    same(load_checkpoint(torch_model), loaded)
    said = capsys.readouterr().err
    assert said.startswith("warning: converted models are not kept: ") and said.count("\n") == 1
    with pytest.raises(UserError, match=r"not kept: .*set JANUS_JAX_CACHE"):
        native_directory(torch_model)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "file") == ["torch"]


def test_values_that_are_not_finite_are_refused_without_a_cache_too(torch_model, monkeypatch):
    from safetensors.numpy import load_file, save_file

    state = load_file(torch_model / "model.safetensors")
    state["vision_model.vision_tower.norm.weight"][0] = np.nan
    save_file(state, torch_model / "model.safetensors")
    monkeypatch.delenv("JANUS_JAX_CACHE", raising=False)
    monkeypatch.setattr(cache_module, "user_cache", lambda: None)
    with pytest.raises(UserError, match="non-finite: vision_model"):
        load_checkpoint(torch_model)


def test_a_conversion_is_found_when_the_hub_and_its_cache_are_gone(
    tmp_path, cache, monkeypatch, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for owner in ("owner", "stranger"):
        put(tmp_path / "hub" / f"models--{owner}--Name" / "snapshots" / "aaaa")
    place = native_directory("owner/Name")
    assert native_directory("owner/Name") == place  # found by its own name
    assert "using what it was converted to" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "hub")
    snapshot = tmp_path / "hub" / "models--owner--Name" / "snapshots" / "aaaa"
    for change in (lambda: None, snapshot.mkdir, (snapshot / "config.json").touch):
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        change()
        assert native_directory("owner/Name") == place
        said = capsys.readouterr().err
        assert "using what it was converted to before" in said and str(place) in said
    same(load_checkpoint("owner/Name"), load_model(place))
    with pytest.raises(UserError, match="could not be downloaded"):  # of the same name, not it
        native_directory("stranger/Name")


def test_a_conversion_is_of_one_revision_and_in_the_directory_that_is_asked_for(
    tmp_path, cache, monkeypatch, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    snapshots = tmp_path / "hub" / "models--owner--Name" / "snapshots"
    put(snapshots / "aaaa")
    mine = tmp_path / "mine"
    for revision in (None, "aaaa", "aaaa"):
        load_checkpoint("owner/Name", revision=revision, cache_dir=mine)
    assert len(list(mine.iterdir())) == 2 and not cache.exists()
    assert capsys.readouterr().err.count(", once") == 2
    # What was converted before, of whatever revision, does not stand for one that cannot be had.
    with pytest.raises(UserError, match="could not be downloaded"):
        load_checkpoint("owner/Name", revision="bbbb", cache_dir=mine)


def test_what_killed_conversions_left_goes_with_the_next_use(torch_model, cache):
    old = cache / ".another-0123456789ab.1.tmp"
    (old / "params").mkdir(parents=True)
    for path in (old / "params", old):
        os.utime(path, (0, 0))
    os.rename(old, old.with_name(".another-0123456789ab.2147483647.tmp"))  # no such process
    place = native_directory(torch_model)
    assert list(cache.iterdir()) == [place]


def test_a_second_process_waits_for_the_first(torch_model, cache, capsys):
    place = cache / f"torch-{cache_module._fingerprint(torch_model)}"
    began, go_on = threading.Event(), threading.Event()

    def first():
        with write_output_dir(place) as new:
            new.mkdir()
            (new / "janus.json").write_text("{}")
            began.set()
            go_on.wait(20)

    thread = threading.Thread(target=first)
    thread.start()
    assert began.wait(20)
    timer = threading.Timer(0.3, go_on.set)
    timer.start()
    since = time.monotonic()
    assert native_directory(torch_model) == place
    assert time.monotonic() - since >= 0.3
    thread.join()
    assert "waiting for the process" in capsys.readouterr().err
    assert (place / "janus.json").read_text() == "{}"  # not converted a second time


def test_a_missing_tokenizer_is_told_with_what_helps(torch_model, cache):
    (torch_model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json does not exist; .*convert_torch_weights"):
        load_checkpoint(torch_model)


@pytest.mark.parametrize("kept", ["not yet", "already", "nowhere"])
@pytest.mark.parametrize("which", [{"step": 0}, {"stage": "first"}])
def test_a_step_of_a_checkpoint_is_refused_by_the_name_that_was_given(
    torch_model, cache, monkeypatch, kept, which
):
    if kept == "already":
        native_directory(torch_model)
    elif kept == "nowhere":
        monkeypatch.delenv("JANUS_JAX_CACHE")
        monkeypatch.setattr(cache_module, "user_cache", lambda: None)
    with pytest.raises(UserError, match=f"^{torch_model} is a model, not a training run"):
        load_checkpoint(torch_model, **which)
    assert kept == "already" or not cache.exists()


# Parts of a training run


@pytest.fixture
def run(model, tmp_path):
    for step in (5, 10):
        (tmp_path / f"run/checkpoints/second/{step}").mkdir(parents=True)
        shutil.copytree(model / "params", tmp_path / f"run/checkpoints/second/{step}/params")
    shutil.copytree(tmp_path / "run/checkpoints/second", tmp_path / "run/checkpoints/first")
    for name in ("janus.json", "tokenizer.json"):
        shutil.copyfile(model / name, tmp_path / "run" / name)
    (tmp_path / "run/stages.json").write_text('["first", "second"]')
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("part", "stage", "step"),
    [
        ("", "second", 10),
        ("checkpoints", "second", 10),
        ("checkpoints/first", "first", 10),
        ("checkpoints/first/5", "first", 5),
        ("checkpoints/second/5/", "second", 5),
        ("checkpoints/second/10/params", "second", 10),
        ("checkpoints/../checkpoints/first/5", "first", 5),
    ],
)
def test_a_part_of_a_run_is_that_checkpoint(run, monkeypatch, part, stage, step):
    for path in (f"{run}/{part}", os.path.relpath(f"{run}/{part}")):
        origin = load_checkpoint(path).origin
        assert (origin["stage"], origin["step"]) == (stage, step)
    monkeypatch.chdir(f"{run}/{part}")
    assert load_checkpoint(".").origin["step"] == step


def test_a_part_that_is_not_there_is_one_line(run):
    with pytest.raises(UserError, match="has no checkpoint of step 7; it has first: 5, 10"):
        load_checkpoint(run / "checkpoints/first/7")
    with pytest.raises(UserError, match="has no stage 'third'"):
        load_checkpoint(run / "checkpoints/third/5")
    with pytest.raises(UserError, match=r"is step 5 of .* but step 10 is asked for"):
        load_checkpoint(run / "checkpoints/first/5", step=10)
    assert load_checkpoint(run / "checkpoints/first", step=5).origin["step"] == 5


def test_a_model_inside_of_a_directory_called_checkpoints_is_itself(model, tmp_path):
    shutil.copytree(model, tmp_path / "checkpoints/first/5")
    assert load_checkpoint(tmp_path / "checkpoints/first/5").origin == load_model(model).origin
    assert json.loads((model / "janus.json").read_text())["origin"]["format"] == "official"
