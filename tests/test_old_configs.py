"""Runs that an earlier version began: what their config.json becomes, and what a run goes on with."""

import copy
import json
import shutil

import pytest
from smoke import tiny

from janus_jax.configs import janus_tiny
from janus_jax.configs.earlier import upgraded, where_it_went
from janus_jax.errors import UserError
from janus_jax.run import build
from janus_jax.run.claim import differences, init_or_verify_run_dir, jsonable, lock

WORLD = {"image_size": 48, "grid": 3, "objects": "tiny"}
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TASKS = {"vq": ("pictures",), "siglip": ("pairs",)}


def downgraded(fields):
    """config.json as versions before sources wrote it."""
    old = copy.deepcopy(fields)
    del old["builtin_tokenizer"], old["data"]["too_long"]
    old["world"] = dict(WORLD)
    for stage in old["stages"].values():
        sources = stage.pop("sources")
        scenes = {"detailed": 0.0, "describe": 0.3, "questions": 1, "yes_no": 0.0}
        scenes |= {"chat": False, "drawings": 0.3}
        for source in sources.values():
            scenes |= {k: v for k, v in source["options"].items() if k not in ("world", "kinds")}
            scenes["tasks"] = source["options"]["kinds"]
        stage["scenes"] = scenes | {"condition_dropout": stage.pop("condition_dropout")}
    found = {b["name"]: b for b in old["eval"].pop("benchmarks")}
    old["eval"] |= {
        "prompts": found["emoji/geneval"]["prompts"],
        "questions": found["emoji/questions"]["questions"],
        "cfg_weights": found["emoji/geneval"]["cfg_weights"] or [1.5],
    }
    return old


@pytest.mark.parametrize("arg", ["", "smoke", "long"])
def test_an_old_config_becomes_todays(arg):
    today = jsonable(janus_tiny.get_config(arg))
    old = downgraded(today)
    assert "world" in old and "scenes" in old["stages"]["stage1"]
    before = copy.deepcopy(old)
    assert differences(upgraded(old), today) == [] and old == before
    assert upgraded(today) == today


def test_a_change_in_an_old_config_stays_a_change():
    old = downgraded(jsonable(janus_tiny.get_config("smoke")))
    old["stages"]["stage2"]["scenes"]["tasks"]["counting"] = 9.0
    old["stages"]["stage3"]["scenes"]["condition_dropout"] = 0.5
    old["world"]["image_size"] = 96
    found = {
        str(c.path) for c in differences(upgraded(old), jsonable(janus_tiny.get_config("smoke")))
    }
    assert "stages.stage2.sources.gen.options.kinds.counting" in found
    assert "stages.stage3.condition_dropout" in found
    assert "stages.stage0_vq.sources.pictures.options.world.image_size" in found


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.pop("world"),
        lambda f: f.update(world=None),
        lambda f: f.update(stages=None),
        lambda f: f["stages"].update(stage1=None),
        lambda f: f["stages"]["stage1"].update(scenes=None),
        lambda f: f["stages"]["stage1"]["scenes"].update(tasks=3),
        lambda f: f.update(eval=None, data=None),
    ],
)
def test_a_damaged_old_config_is_one_line(change, tmp_path):
    made = tiny()
    with lock(tmp_path / "run"):
        init_or_verify_run_dir(tmp_path / "run", made, build(made))
    old = downgraded(jsonable(janus_tiny.get_config("smoke")))
    change(old)
    text = json.dumps(old)
    (tmp_path / "run" / "config.json").write_text(text)
    with (
        lock(tmp_path / "run"),
        pytest.raises(UserError, match=r"config\.json is damaged") as error,
    ):
        init_or_verify_run_dir(tmp_path / "run", made, build(made))
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / "config.json").read_text() == text


def test_a_run_of_the_old_layout_goes_on(tmp_path):
    run, made = tmp_path / "run", tiny()
    with lock(run):
        init_or_verify_run_dir(run, made, build(made))
    (run / "checkpoints" / "stage1" / "3" / "params").mkdir(parents=True)
    today = json.loads((run / "config.json").read_text())
    today["eval"] = jsonable(janus_tiny.get_config("smoke"))["eval"]
    old = downgraded(today)
    (run / "config.json").write_text(json.dumps(old))
    shutil.copytree(run, tmp_path / "other")
    with lock(run):
        init_or_verify_run_dir(run, made, build(made))
    (record,) = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert set(record["changes"]) == {"eval.benchmarks"}  # which `tiny` has none of
    assert "world" not in json.loads((run / "config.json").read_text())
    # Another mixture is still another run.
    other = tiny(stages__stage1__sources__gen__options__detailed=0.25)
    with (
        lock(tmp_path / "other"),
        pytest.raises(UserError, match=r"sources\.gen\.options\.detailed"),
    ):
        init_or_verify_run_dir(tmp_path / "other", other, build(other))


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("world.grid", "config.stages.STAGE.sources.LABEL.options.world.grid"),
        ("world", "config.builtin_tokenizer.objects"),
        ("stages.stage2.scenes.describe", "config.stages.stage2.sources.LABEL.options.describe"),
        ("stages.s.scenes.tasks.counting", "config.stages.s.sources.LABEL.options.kinds.counting"),
        ("stages.s.scenes.condition_dropout", "config.stages.s.condition_dropout"),
        ("eval.prompts", "config.eval.benchmarks[N].prompts of emoji/geneval"),
        ("eval.questions", "config.eval.benchmarks[N].questions of emoji/questions"),
    ],
)
def test_where_a_field_went(field, place):
    assert where_it_went(field).startswith(f"config.{field} has moved to ")
    assert place in where_it_went(field)


def test_other_fields_have_not_moved():
    assert where_it_went("worlds") == where_it_went("stages.stage1.steps") == ""
