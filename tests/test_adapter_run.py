"""The adapter of a training run as files, and models that are loaded with one: the commands and `Janus.load`."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from adapter_files import (
    CONFIG,
    EVERYTHING,
    WEIGHTS,
    adapted,
    base,
    edit_tensors,
    leaves,
    same,
)
from converting import write_hf
from test_lora import lora_run, saved

from janus_jax import inference
from janus_jax.adapters import LORA_PARAMS, attach_lora, merge_lora, split_lora
from janus_jax.checkpoints import StageCheckpoints, load_model, write_metadata
from janus_jax.cli import convert as convert_command
from janus_jax.cli import sample as sample_command
from janus_jax.errors import UserError
from janus_jax.inference import Janus
from janus_jax.interop import HF, params_to_torch
from janus_jax.interop.adapters import check_adapter, read_adapter, trained_adapter, write_adapter
from janus_jax.interop.adapters.trained import base_of_stage
from janus_jax.interop.conversion import hub
from janus_jax.models import stack_layers, unstack_layers
from janus_jax.processing import ProcessorConfig, build_word_tokenizer
from janus_jax.run import train

WORDS = "a red green cat dog car on the left right of what is it ? yes no .".split()


def run_command(command, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
    command.main()


# Of a training run


SCANNED = CONFIG.replace(scan_layers=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run of one stage leaves that trained an adapter: steps 3 and 6, of scanned layers."""
    path = tmp_path_factory.mktemp("runs") / "run"
    tokenizer = build_word_tokenizer(WORDS)
    processor = ProcessorConfig.from_model(SCANNED).to_dict()
    write_metadata(path, SCANNED, processor, tokenizer.to_json())
    (path / "stages.json").write_text('["stage2"]')
    stage = {"options": {"lora": {"rank": 4}}, "trainable": list(LORA_PARAMS)}
    config = {"stage_order": ["stage2"], "stages": {"stage2": stage}, "init_from": None}
    (path / "config.json").write_text(json.dumps(config))
    with StageCheckpoints(path / "checkpoints" / "stage2") as checkpoints:
        for step in (3, 6):
            params = stack_layers(adapted(seed=step), SCANNED)
            checkpoints.save(step, params, {"step": np.int32(step)}, {})
    return path


def test_only_the_adapter_of_a_run_is_read(run):
    found = trained_adapter(run)
    assert (found.stage, found.step, found.base) == ("stage2", 6, None)
    same(found.params, stack_layers(leaves(adapted(seed=6)), SCANNED))


@pytest.mark.slow
def test_a_run_leaves_its_adapter_as_files(tmp_path, capsys):
    run = tmp_path / "run"
    train(lora_run(), run, quiet=True)
    loaded, path = load_model(run), run / "adapter" / "stage2"
    own, rest = split_lora(unstack_layers(saved(run, 6), loaded.config))
    found = read_adapter(path, loaded.config)
    same(found, jax.tree.map(np.asarray, own))
    # On what the run began with it is what the run loads as.
    wanted = unstack_layers(loaded.params, loaded.config)
    same(merge_lora(attach_lora(rest, found)), wanted)
    # The same command again writes what is missing.
    weights = (path / WEIGHTS).read_bytes()
    shutil.rmtree(path)
    train(lora_run(), run, quiet=True)
    assert (path / WEIGHTS).read_bytes() == weights
    assert "adapter" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "name"), [("peft", "model.language_model"), ("peft-official", "language_model.model")]
)
def test_the_command_writes_any_step(run, tmp_path, monkeypatch, capsys, to, name):
    flags = ("--src", run, "--to", to, "--step", 3, "--dst", tmp_path / "adapter")
    run_command(convert_command, monkeypatch, *flags)
    out = capsys.readouterr().out
    assert "the adapter of stage2, step 3" in out and "28 modules, 39,040 parameters" in out
    same(read_adapter(tmp_path / "adapter", CONFIG), leaves(adapted(seed=3)))
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values["target_modules"].startswith(name.replace(".", r"\.") + r"\.layers")
    assert (values["auto_mapping"] is None) == (to == "peft-official")


def test_the_base_is_what_the_stage_began_with(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")

    def base_with(init, stages=("stage2",)):
        values = json.loads((run / "config.json").read_text()) | {"init_from": init}
        (copy / "config.json").write_text(json.dumps(values))
        return base_of_stage(copy, "stage2", stages)

    assert base_with(None) is None
    assert base_with(str(run)) == str(run)
    # Of a converted model, what it was converted from: PEFT cannot load ours.
    model = tmp_path / "model"
    (model / "params").mkdir(parents=True)
    snapshot = "/c/hub/models--deepseek-ai--Janus-Pro-1B/snapshots/96c3"
    for origin, wanted in (
        ({"from": "/models/janus", "format": "hf"}, "/models/janus"),
        ({"from": snapshot, "format": "official"}, "deepseek-ai/Janus-Pro-1B"),
        ({"from": "runs/other", "format": "janus_jax"}, str(model)),
        ({"from": "/models/janus", "format": "hf", "adapter": "one"}, str(model)),
        ({"from": 7}, str(model)),
        ("?", str(model)),
    ):
        (model / "janus.json").write_text(json.dumps({"origin": origin}))
        assert base_with(str(model)) == wanted
    # Of a later stage, the end of the one before it that was trained here.
    stages = ("stage0", "stage1", "stage2")
    assert base_with("a/b", stages) == "a/b"
    shutil.copytree(copy / "checkpoints" / "stage2", copy / "checkpoints" / "stage0")
    assert base_with("a/b", stages) == str(copy / "checkpoints" / "stage0" / "6")


def test_a_run_without_an_adapter_of_its_own_is_told(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    values = json.loads((run / "config.json").read_text())

    def with_stage(**fields):
        stages = values["stages"] | {"stage2": values["stages"]["stage2"] | fields}
        (copy / "config.json").write_text(json.dumps(values | {"stages": stages}))
        flags = ("--src", copy, "--to", "peft", "--dst", tmp_path / "out")
        run_command(convert_command, monkeypatch, *flags)

    with pytest.raises(UserError, match=r"none of its stages \(stage2\) has options\.lora"):
        with_stage(options={})
    with pytest.raises(UserError, match=r"trained 4 parameters beside the adapter, such as gen_"):
        with_stage(trainable=[*LORA_PARAMS, "gen_adaptor"])
    with pytest.raises(UserError, match="make no sense"):
        with_stage(options=7)
    with pytest.raises(UserError, match=r"has no checkpoint of step 4 .* it has 6 of stage2, 3 of"):
        trained_adapter(run, 4)
    with pytest.raises(UserError, match="no such directory"):
        trained_adapter(tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_cannot_be_exported_does_not_end_a_run(tmp_path, capsys):
    """A stage that trains more than its adapter: the checkpoint has both."""
    config = lora_run()
    config.stages.stage2.trainable = (*LORA_PARAMS, "gen_adaptor")
    train(config, tmp_path / "run", quiet=True)
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "adapter" in x)
    assert line.startswith("warning: no files of the adapter of stage2: stage stage2 of")
    assert not (tmp_path / "run" / "adapter").exists()
    assert (tmp_path / "run" / "report.md").exists()


# Loaded with a model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The base model in the format of transformers, and an adapter on every part of it."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = build_word_tokenizer(WORDS)
    write_hf(directory / "hf", params_to_torch(base(), CONFIG, HF), CONFIG, tokenizer)
    write_adapter(adapted(EVERYTHING), CONFIG, directory / "adapter")
    return directory


PICTURE = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def merged(model, tmp_path_factory):
    """The model with its adapter, exported by the command."""
    directory = tmp_path_factory.mktemp("merged")
    with pytest.MonkeyPatch.context() as patch:
        for to in ("hf", "official"):
            flags = ("--src", model / "hf", "--adapter", model / "adapter", "--to", to)
            run_command(convert_command, patch, *flags, "--dst", directory / to)
    return directory


@pytest.mark.heavy
def test_loaded_with_it_a_model_has_the_weights_that_were_merged(model, merged):
    plain = Janus.load(model / "hf", dtype="float32")
    with_it = Janus.load(model / "hf", dtype="float32", adapter=model / "adapter")
    for to in ("hf", "official"):
        again = Janus.load(merged / to, dtype="float32")
        same(jax.tree.map(np.asarray, with_it.weights), jax.tree.map(np.asarray, again.weights))
    assert not np.array_equal(plain.weights["lm_head"], with_it.weights["lm_head"])


@pytest.mark.slow
def test_it_draws_and_answers_as_what_was_merged(model, merged):
    def drawn(janus):
        answer = janus.answer(PICTURE, "what is it ?", 8)
        return janus.sample("a red cat", n=2, seed=1).codes, answer

    codes, answer = drawn(Janus.load(model / "hf", dtype="float32", adapter=model / "adapter"))
    assert not np.array_equal(codes, drawn(Janus.load(model / "hf", dtype="float32"))[0])
    for to in ("hf", "official"):
        again, text = drawn(Janus.load(merged / to, dtype="float32"))
        np.testing.assert_array_equal(again, codes)
        assert text == answer


def test_the_command_draws_with_an_adapter(model, tmp_path, monkeypatch):
    given = {}

    class Loaded(Exception):
        pass

    def load(checkpoint, **options):
        given.update(options, checkpoint=checkpoint)
        raise Loaded

    monkeypatch.setattr(inference.Janus, "load", load)
    flags = ("--checkpoint", model / "hf", "--adapter", model / "adapter", "--prompt", "a cat")
    with pytest.raises(Loaded):
        run_command(sample_command, monkeypatch, *flags, "--out", tmp_path / "out")
    assert given["adapter"] == str(model / "adapter")


def test_a_bad_adapter_is_told_before_the_model_is_looked_for(model, tmp_path, monkeypatch):
    """It may be gigabytes away."""
    adapter = shutil.copytree(model / "adapter", tmp_path / "adapter")
    edit_tensors(adapter, lambda tensors: {k: v for k, v in tensors.items() if "lora_B" in k})
    with pytest.raises(UserError, match="has lora_B, but no lora_A"):
        Janus.load(tmp_path / "nothing", adapter=adapter)
    flags = ("--src", "nobody/nothing", "--adapter", adapter, "--dst", tmp_path / "out")
    with pytest.raises(UserError, match="has lora_B, but no lora_A"):
        run_command(convert_command, monkeypatch, *flags)
    for value in (3, "", b"x"):
        with pytest.raises(UserError, match="adapter must be a path"):
            Janus.load(model / "hf", adapter=value)


def test_a_run_does_not_get_its_own_adapter_twice(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    write_adapter(adapted(), CONFIG, copy / "adapter" / "stage2")
    (tmp_path / "link").symlink_to(copy / "adapter")
    for place in (copy / "adapter" / "stage2", tmp_path / "link" / "stage2"):
        with pytest.raises(UserError, match="in its weights already, as it has trained it"):
            Janus.load(copy, adapter=place)
        flags = ("--src", copy, "--adapter", place, "--dst", tmp_path / "out")
        with pytest.raises(UserError, match="in its weights already, as it has trained it"):
            run_command(convert_command, monkeypatch, *flags)
    check_adapter(copy / "adapter" / "stage2", copy / "checkpoints" / "stage2" / "3")


def test_an_adapter_of_the_hub_is_found_in_its_cache(model, tmp_path, monkeypatch):
    """Its snapshot has no config.json, which one of a model must have."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    shutil.copytree(model / "adapter", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.local_directory("owner/name") == snapshot
    (snapshot / "adapter_config.json").unlink()
    (snapshot / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"lacks config\.json"):
        hub.local_directory("owner/name")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--to", "peft", "--adapter", "x"), "goes without --adapter"),
        (("--to", "peft-official", "--parity", "x"), "goes without --adapter, --parity"),
        (("--to", "hf", "--step", 3), "--step goes with --to peft"),
        (("--adapter", "x", "--record", "y.npz"), "--record computes with the weights in --src"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=message):
        given = ("--src", tmp_path, "--dst", tmp_path / "out", *flags)
        run_command(convert_command, monkeypatch, *given)
