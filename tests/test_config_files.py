"""The recipes under configs/: plain data that is read without JAX, and what stands in for the paper's data."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax.configs import common, emoji, janus_tiny, standin
from janus_jax.emoji.scene import SCENE_KINDS, TRAINING_SCENE_KINDS
from janus_jax.emoji.source import EmojiSource
from janus_jax.errors import UserError
from janus_jax.param_groups import split_params
from janus_jax.registry import Registry
from janus_jax.run.config_checks import check_config
from janus_jax.training import TRAINABLE

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("janus_tiny", "janus_small", "janus_1b", "janus_pro_1b", "janus_pro_7b")
FULL_SIZE = ("janus_1b", "janus_pro_1b", "janus_pro_7b")
HEAVY = ("jax", "flax", "optax", "orbax", "grain", "torch")


def config_of(name, *arg):
    return importlib.import_module(f"configs.{name}").get_config(*arg)


def test_reading_a_config_imports_nothing_heavy():
    code = (
        "import sys, importlib\n"
        f"for name in {NAMES}: importlib.import_module(f'configs.{{name}}').get_config()\n"
        f"print([m for m in sys.modules if m.split('.')[0] in {HEAVY}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_has_sources_for_every_task(name):
    config = config_of(name)
    for stage in config.stages.values():
        wanted = {"vq": {"pictures"}, "siglip": {"pairs"}}.get(
            stage.objective, {"und", "text", "gen"}
        )
        assert {source.task for source in stage.sources.values()} == wanted
        for source in stage.sources.values():
            EmojiSource(source.task, **source.options.to_dict())  # no option is unknown


def test_the_stand_in_is_named_in_one_place():
    for name in (*FULL_SIZE, "common"):
        text = (ROOT / "janus_jax" / "configs" / f"{name}.py").read_text().lower()
        assert "emoji" not in text, name
    for name in FULL_SIZE:
        stages = config_of(name).stages
        for stage in ("stage1", "stage2", "stage3"):
            assert stages[stage].sources.to_dict() == standin.sources(stage)
    one, two, three = (config_of("janus_pro_7b").stages[f"stage{i}"].sources for i in (1, 2, 3))
    assert one.gen.options.kinds.single_object == 1 and sum(one.gen.options.kinds.values()) == 1
    assert one.und.options.describe == 1.0 and not two.text.options.chat
    assert three.text.options.chat and three.und.options.describe == 0.1


def test_a_source_of_every_kind_of_scene_is_the_evenly_mixed_one():
    assert tuple(emoji.EVENLY) == SCENE_KINDS and emoji.KINDS == TRAINING_SCENE_KINDS


def test_the_small_config_is_of_one_world():
    config = config_of("janus_small")
    worlds = [
        source.options.world.to_dict()
        for stage in config.stages.values()
        for source in stage.sources.values()
    ]
    worlds += [dict(benchmark["world"]) for benchmark in config.eval.benchmarks]
    assert all(world == dict(image_size=128, grid=4, objects="all") for world in worlds)
    assert config.builtin_tokenizer.objects == "all"


def test_the_freeze_sets_of_configs_are_strings():
    for name in NAMES:
        for stage in config_of(name).stages.values():
            assert tuple(stage.trainable) in TRAINABLE.values()


def test_a_config_is_json():
    for arg in ("", "smoke", "long"):
        text = janus_tiny.get_config(arg).to_json()
        assert json.loads(text)["eval"]["benchmarks"][0]["name"] == "emoji/geneval"


@pytest.mark.parametrize(
    ("part", "field", "said"),
    [
        ("", "nonsense", "config has no field 'nonsense'. Did you mean 'seed'?"),
        ("log", "save_evry", "config.log has no field 'save_evry'. Did you mean 'save_every'?"),
        ("data.row", "token", "config.data.row has no field 'token'. Did you mean 'tokens'?"),
        (
            "stages.stage1",
            "stepz",
            "config.stages.stage1 has no field 'stepz'. Did you mean 'steps'?",
        ),
    ],
)
def test_a_field_that_nobody_reads_is_an_error(part, field, said):
    config = janus_tiny.get_config("smoke")
    place = config
    for name in filter(None, part.split(".")):
        place = place[name]
    place[field] = 4
    with pytest.raises(UserError) as error:
        check_config(config)
    assert str(error.value) == said


def test_a_field_of_a_stage_that_is_missing_is_named():
    config = janus_tiny.get_config("smoke")
    del config.stages.stage1.steps
    with pytest.raises(UserError, match=r"config\.stages\.stage1\.steps is missing"):
        check_config(config)


@pytest.mark.parametrize("place", ["no_such_module:Mine", "janus_jax.errors:Mine"])
def test_a_source_that_cannot_be_imported_is_one_line(place):
    registry = Registry("source", {"mine": place})
    with pytest.raises(UserError, match=f"source 'mine' cannot be imported from {place}"):
        registry.get("mine")


def test_a_stage_trains_a_freeze_set_or_patterns():
    assert common.stage("janus", "lm", {}).trainable == TRAINABLE["lm"]
    patterns = ("siglip/blocks*/**/kernel", "decoder/layers*/attn")
    stage = common.stage("janus", patterns, {})
    assert stage.trainable == patterns
    with pytest.raises(UserError, match="no freeze set 'stage'"):
        common.stage("janus", "stage", {})
    params = {"siglip": {"blocks_0": {"qkv": {"kernel": 1}}}, "decoder": {"layers": {"attn": 1}}}
    assert not split_params(params, patterns)[1]
