"""Fine-tuning: the recipes, what they refuse and warn of, and a length that is given in epochs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from smoke import tiny
from test_multihost import free_port

from janus_jax.adapters import LORA_PARAMS
from janus_jax.adapters.lora import TARGETS
from janus_jax.checkpoints import load_model
from janus_jax.configs import finetune
from janus_jax.errors import UserError
from janus_jax.models import init_params
from janus_jax.run import batches, build, train
from janus_jax.run.config_checks import check_config
from janus_jax.run.epochs import with_epochs
from janus_jax.run.forgetting import warn_of_forgetting, warn_of_other_words
from janus_jax.training import TRAINABLE, Stage, add_params, check_trainable, split_params

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = str(ROOT / "examples" / "data" / "manifest.yaml")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def recipe(name="lora_smoke", manifest=MANIFEST, **fields):
    """A recipe on the examples, with fields of its stage changed."""
    config = finetune.get_config(name)
    config.data.manifest, config.mesh.fsdp = manifest, 1
    config.log.sample_every = 0  # tests that look at samples say so
    with config.unlocked():
        config.stages.finetune.update(fields)
    return config


# The recipes


def test_reading_the_recipes_imports_no_jax():
    code = (
        "import sys; from configs.finetune import get_config; get_config(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('jax', 'flax', 'optax', 'grain')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", finetune.VARIANTS)
def test_a_recipe_is_a_config_of_one_stage_that_starts_from_a_model(name):
    config = finetune.get_config(name)
    check_config(config)
    assert config.stage_order == ("finetune",) and config.init_required
    stage = config.stages.finetune
    assert min(stage.ratio) > 0, "a task that is left out is lost"
    assert stage.ema_decay == 0 and stage.options.optimizer.schedule == "cosine"
    assert config.log.save_every <= stage.steps and config.log.keep_best == 1
    assert "lora" in stage.options or not name.startswith("lora")


def test_an_unknown_recipe_is_one_line():
    with pytest.raises(UserError, match=r"no variant 'lorra'.*Did you mean 'lora'"):
        finetune.get_config("lorra")


def test_the_recipe_of_an_adapter_is_the_adapters_own():
    assert TRAINABLE["lora"] == LORA_PARAMS and finetune.LORA_TARGETS == TARGETS


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("lora", {"decoder"}),
        ("full", {"decoder", "und_adaptor", "gen_adaptor", "gen_embed", "image_head"}),
        ("generation", {"decoder", "gen_adaptor", "gen_embed", "image_head"}),
        ("understanding", {"decoder", "und_adaptor"}),
    ],
)
def test_what_a_recipe_trains(name, groups):
    experiment = build(recipe(f"{name}_smoke"))
    (stage,) = experiment.stages
    check_trainable(experiment.model, [stage])
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda k: init_params(experiment.model, k), key)
    trained, frozen = split_params(
        add_params(experiment.model, stage, shapes, key), stage.trainable
    )
    assert set(trained) == groups and {"siglip", "vq"} <= set(frozen)
    if name == "lora":
        count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
        assert 0 < count(trained) < count(frozen) / 4


# What is refused


def without(task, tmp_path):
    """The manifest of the examples without the sources of a task."""
    import yaml

    entries = yaml.safe_load(Path(MANIFEST).read_text())["sources"]
    base = Path(MANIFEST).parent
    kept = [e | {"path": str(base / e["path"])} for e in entries if e["task"] != task]
    for entry in kept:
        if "image_root" in entry:
            entry["image_root"] = str(base / entry["image_root"])
    path = tmp_path / "m.yaml"
    path.write_text(json.dumps({"sources": kept}))
    return str(path)


@pytest.mark.parametrize("task", ["understanding", "text", "generation"])
def test_a_task_that_the_manifest_lacks_is_named(task, tmp_path):
    with pytest.raises(UserError, match=f"no source with the task {task}, and finetune has a rat"):
        build(recipe(manifest=without(task, tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(init_from=""), r"a fine-tune needs config\.init_from"),
        (dict(init_from="/nowhere"), "nowhere"),
        (dict(init_from="", tokenizer=""), r"a fine-tune needs config\.init_from"),
        (dict(init_from="/nowhere", tokenizer=""), r"/nowhere is no model directory"),
        (dict(init_from="examples", tokenizer=""), r"examples is no model directory"),
    ],
)
def test_without_a_model_nothing_is_begun(change, message, tmp_path):
    config = recipe()
    config.update(change)
    with pytest.raises(UserError, match=message) as error:
        train(config, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_without_data_the_line_says_where_it_comes_from():
    with pytest.raises(UserError, match=r"task 'und': pass --config\.data\.manifest=FILE"):
        build(recipe(manifest=""))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(trainable=("und_adaptor",)), r"options\.lora adds decoder/.*/lora_a, and trainable"),
        (dict(trainable=("**/lora_b",)), r"lora_a, and trainable leaves it frozen"),
        (dict(trainable=("vq", "**/lora_*")), "trainable has vq, to which the objective janus"),
        (dict(trainable=("decodr",)), "Did you mean 'decoder'"),
    ],
)
def test_a_freeze_set_that_trains_something_else_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        experiment = build(recipe(**fields))
        check_trainable(experiment.model, experiment.stages)


# What is warned of


def stage_of(ratio, trainable=("decoder",)):
    return Stage("one", "janus", trainable, 5, 1e-3, 0, 4, ratio=ratio)


@pytest.mark.parametrize(
    ("ratio", "lost"),
    [
        ((0, 0, 1), "answers about pictures and answers without pictures may be lost"),
        ((1, 1, 0), ": pictures that are drawn may be lost"),
        ((2, 1, 2), None),
    ],
)
def test_a_task_without_a_share_is_warned_of(ratio, lost, capsys):
    warn_of_forgetting(stage_of(ratio))
    said = capsys.readouterr().err
    assert (said.count("\n"), lost in said) == (1, True) if lost else said == ""


def test_where_the_language_model_stays_nothing_is_lost(capsys):
    warn_of_forgetting(stage_of((1, 0, 3), TRAINABLE["stage1"]))
    assert capsys.readouterr().err == ""
    warn_of_forgetting(stage_of((1, 0, 3), TRAINABLE["lora"]))
    assert "answers without pictures may be lost" in capsys.readouterr().err


def test_other_words_around_a_prompt_are_warned_of(capsys):
    experiment = build(tiny())
    same = experiment.processor.config.to_dict()
    warn_of_other_words(same, experiment)
    warn_of_other_words({}, experiment)
    assert capsys.readouterr().err == ""
    warn_of_other_words(same | {"template": "deepseek_old\x1b[1m"}, experiment)
    said = capsys.readouterr().err
    assert "config.processor.template is 'deepseek'" in said and "\x1b" not in said


# Epochs


def test_epochs_are_the_steps_that_read_so_many_sequences(capsys):
    experiment = with_epochs(build(recipe("full_smoke", epochs=3.0)))
    (stage,) = experiment.stages
    assert experiment.config.stages.finetune.steps == stage.steps
    iterator = batches(experiment, stage)
    # Those of the examples, without the one of each that is held out.
    records = {"questions": 4, "descriptions": 2, "captions": 2, "prompts": 3, "facts": 11}
    made = [int(next(iterator)["segment_ids"].max(axis=1).sum()) for _ in range(stage.steps)]
    assert list(iterator.ledger.totals()) == sorted(records)
    iterator.close()
    wanted = 3 * sum(records.values())
    # One step more or less, and rows that are not all as full as the first ones.
    assert abs(sum(made) - wanted) <= max(made) + 0.1 * wanted
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"3 epochs of 22 records are {stage.steps} steps" in said
    assert "facts" in said and "times" in said


def test_a_run_that_has_begun_keeps_its_steps(tmp_path, capsys):
    kept = {"stages": {"finetune": {"epochs": 2.0, "steps": 77}}}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    steps = lambda epochs: with_epochs(build(recipe(epochs=epochs)), tmp_path).stages[0].steps
    assert steps(2.0) == 77 and capsys.readouterr().err == ""
    assert steps(1.0) != 77
    assert steps(0.0) == 60
    (tmp_path / "config.json").write_text('{"stages": [1')  # damaged: who claims it says so
    assert steps(2.0) != 77


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "3"])
def test_impossible_epochs_are_one_line(value):
    with pytest.raises(UserError, match="epochs must be a finite number"):
        Stage("one", "janus", ("decoder",), 5, 1e-3, 0, 4, ratio=(1, 0, 0), epochs=value)


def test_epochs_are_of_sequences():
    with pytest.raises(UserError, match="epochs are of sequences"):
        Stage("one", "vq", ("vq",), 5, 1e-3, 0, 4, epochs=1.0)


# A run


@pytest.mark.slow
def test_an_adapter_of_a_trained_model_learns_the_examples(tmp_path, capsys):
    train(tiny(stage_order=("stage0_lm",)), tmp_path / "model", quiet=True)
    config = recipe(steps=30, learning_rate=5e-3)
    config.init_from = str(tmp_path / "model")
    config.tokenizer = ""  # that of the model
    config.model.overrides = {}
    with pytest.raises(UserError, match="holds janus-tiny, but this config is for janus-tiny"):
        train(config, tmp_path / "run", quiet=True)
    config = recipe(steps=30, learning_rate=5e-3)
    config.init_from = str(tmp_path / "model")
    train(config, tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "held_out" not in json.loads(line)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    assert "may be lost" not in capsys.readouterr().err
    one, other = load_model(tmp_path / "model").params, load_model(tmp_path / "run").params
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), one, other)
    assert jax.tree.all({k: v for k, v in same.items() if k != "decoder"})
    assert not jax.tree.all(same["decoder"])


@pytest.mark.slow
@pytest.mark.multidevice
def test_two_processes_see_the_same_of_held_out_data(tmp_path):
    found, drawn = {}, {}
    for count in (1, 2):
        run, jobs = tmp_path / str(count), []
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(2 // count)}
        if count > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
        flags = [
            "--config=finetune:lora_smoke",
            f"--config.data.manifest={MANIFEST}",
            "--config.init_required=False",  # random numbers will do
            "--config.data.held_out=0.3",
            "--config.data.streams=2",
            "--config.eval.held_out_every=2",
            "--config.stages.finetune.steps=4",
            "--config.stages.finetune.learning_rate=0.01",
            f"--workdir={run}",
            "--quiet",
        ]
        for index in range(count):
            more = {"JAX_PROCESS_ID": str(index)} if count > 1 else {}
            command = [sys.executable, "train.py", *flags]
            jobs.append(subprocess.Popen(command, cwd=ROOT, env=env | more, stderr=subprocess.PIPE))
        said = [job.communicate(timeout=400)[1].decode() for job in jobs]
        assert [job.returncode for job in jobs] == [0] * count, said
        assert sum("held out of training" in text for text in said) == 1
        seen = [
            r["held_out"]
            for r in map(json.loads, (run / "metrics.jsonl").open())
            if "held_out" in r
        ]
        found[count] = [[s["loss"], *s["sources"].values()] for s in seen]
        # Both draw and answer, and the first one writes.
        samples = run / "samples"
        drawn[count] = [
            [
                json.loads(path.read_text())
                for path in sorted(samples.glob("finetune_00000?*.json"))
            ],
            np.asarray(Image.open(samples / "finetune_000000.png"), int),
        ]
        assert [path.stem for path in sorted(samples.glob("finetune_00000*.png"))] == [
            "finetune_000000",
            "finetune_000004",
        ]
    assert drawn[1][0] == drawn[2][0] and len(drawn[1][0]) == 4
    assert np.abs(drawn[1][1] - drawn[2][1]).max() <= 1
    assert len(found[1]) == 3 and found[1][0][0] > found[1][-1][0]
    np.testing.assert_allclose(found[2], found[1], rtol=1e-5)
