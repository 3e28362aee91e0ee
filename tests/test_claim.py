"""What a run directory takes and what it refuses: one writer, one config, and the changes that do no harm."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from janus_jax.configs import janus_tiny
from janus_jax.errors import UserError
from janus_jax.run import build, train
from janus_jax.run import place as place_module
from janus_jax.run.claim import init_or_verify_run_dir, lock
from janus_jax.run.place import check_shared

ORDER = ("stage0_lm", "stage1", "stage2")


def config(**fields):
    """The smoke config with three stages, and fields like `stages__stage2__steps` changed."""
    made = janus_tiny.get_config("smoke")
    made.mesh.fsdp, made.stage_order = 1, ORDER
    for path, value in fields.items():
        *parts, last = path.split("__")
        node = made
        for part in parts:
            node = node[part]
        with node.unlocked():
            node[last] = value
    return made


def save(run_dir, stage, step):
    """What looks like a checkpoint."""
    (run_dir / "checkpoints" / stage / str(step) / "params").mkdir(parents=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """stage0_lm has finished, stage1 is at step 4 of 6, stage2 has not begun."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    made = config(init_from="tests/./data")
    with lock(run_dir):
        init_or_verify_run_dir(run_dir, made, build(made))
    save(run_dir, "stage0_lm", 6)
    save(run_dir, "stage1", 4)
    return run_dir


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def claims(run, allow=(), **fields):
    """Claims `run` with changed fields; returns what changes.jsonl then says."""
    made = config(**{"init_from": "tests/./data", **fields})
    with lock(run):
        init_or_verify_run_dir(run, made, build(made), allow)
    path = run / "changes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# The config


HARMLESS = [
    {"name": "other"},
    {"log__save_every": 3},
    {"log__log_every": 7},
    {"log__sample_every": 2},
    {"log__stop_when_diverged": True},
    {"log__save_minutes": 5.0, "log__keep": 3, "log__keep_every": 9, "log__keep_best": 1},
    {"log__stop_after_skips": 7, "log__stop_after_worse": 3, "eval__held_out_every": 7},
    {"eval__benchmarks": ()},
    {"eval__benchmarks": ({"name": "emoji/questions", "questions": 9},)},
    {"eval__benchmarks": ({"name": "emoji/geneval", "cfg_weights": (1.0, 3.0)},)},
    {"eval__after_stages": True},
    {"eval__note": "a note"},
    {"data__threads": 3},
    {"policy__remat": "full"},
    {"mesh__fsdp": -1},
    {"mesh__data": 2},
    {"mesh__tensor": 2},
    {"processor__cfg_weight": 3.0},
    {"processor__temperature": 0.1},
    {"only_stage": "stage1"},
    {"stages__stage1__steps": 60},
    {"stages__stage1__steps": 5},
    {"stages__stage1__steps": 4},
    {"stages__stage2__steps": 1},
    {"stage_order": (*ORDER, "stage3")},
    {"stage_order": (*ORDER, "stage3"), "stages__stage3__learning_rate": 1.0},
    {"stage_order": ORDER[:2]},
    {"stages__stage3__learning_rate": 1.0},
    {"init_from": "tests/data/"},
    {"init_from": os.path.abspath("tests/data")},
    {"init_from": ""},
]


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_what_changes_no_result_is_accepted_and_recorded(fields, run):
    records = claims(run, **fields)
    if set(fields) - {"only_stage"}:
        (record,) = records
        assert record["at"] == {"stage0_lm": 6, "stage1": 4} and not record["allowed"]
        assert {p.replace(".", "__") for p in record["changes"]} <= {*fields, "stages__stage3"}
    else:
        assert records == []
    # What the directory holds now is what was asked for.
    assert len(claims(run, **fields)) == len(records)


MORE = {"name": "emoji", "task": "und", "weight": 1.0, "options": {}}
REFUSED = [
    ({"seed": 1}, "config.seed was 0, now 1"),
    ({"stages__stage1__learning_rate": 1.0}, "config.stages.stage1.learning_rate was 0.005, now 1"),
    ({"stages__stage2__learning_rate": 1.0}, "stage2.learning_rate"),
    ({"stages__stage1__batch_size": 4}, "stage1.batch_size was 8, now 4"),
    ({"stages__stage1__ratio": (1.0, 1.0, 3.0)}, "stage1.ratio"),
    ({"stages__stage1__warmup_steps": 1}, "stage1.warmup_steps"),
    ({"stages__stage1__ema_decay": 0.5}, "stage1.ema_decay"),
    ({"stages__stage1__trainable": ("decoder",)}, "stage1.trainable"),
    ({"stages__stage1__condition_dropout": 0.5}, "stage1.condition_dropout was 0.1, now 0.5"),
    ({"stages__stage1__sources__und__weight": 0.5}, "stage1.sources.und.weight"),
    (
        {"stages__stage1__sources__und__options__describe": 0.5},
        "stage1.sources.und.options.describe",
    ),
    (
        {"stages__stage1__sources__und__options__kinds__counting": 1.0},
        "stage1.sources.und.options.kinds.counting was 0.0, now 1.0",
    ),
    ({"stages__stage1__sources__more": MORE}, "stage1.sources.more was not there"),
    ({"stages__stage1__options__reduction": "sequence"}, "reduction was not there"),
    ({"data__row__tokens": 200}, "data.row.tokens was 160, now 200"),
    ({"data__held_out": 0.1}, "data.held_out was 0.0, now 0.1"),
    ({"data__too_long": "reject"}, "data.too_long was 'error', now 'reject'"),
    ({"builtin_tokenizer__objects": "all"}, "builtin_tokenizer.objects"),
    ({"model__overrides__vq__ch": 32}, "model.overrides.vq.ch was 16, now 32"),
    ({"model__overrides__vq__z_channels": 128}, "z_channels was not there, now 128"),
    ({"policy__compute_dtype": "bfloat16"}, "compute_dtype"),
    ({"policy__param_dtype": "bfloat16"}, "param_dtype"),
    ({"processor__system_prompt": "be kind"}, "system_prompt"),
    ({"processor__template": "deepseek_old"}, "template"),
    ({"init_from": "configs"}, "init_from was 'tests/./data', now 'configs'"),
    ({"stages__stage0_lm__steps": 9}, "though stage1 has begun from where stage0_lm ended"),
    ({"stages__stage1__steps": 3}, "though 4 are done"),
    ({"stage_order": ("stage1", "stage0_lm", "stage2")}, "config.stage_order"),
    ({"stage_order": ("stage0_lm",)}, "though stage1 has begun"),
    ({"stage_order": ("stage0_lm", "stage1", "stage3")}, "config.stage_order"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda v: None if v is str else str(v))
def test_what_changes_the_result_is_refused_by_name(fields, message, begun):
    before = {p: p.read_bytes() for p in begun.iterdir() if p.is_file() and p.name != ".lock"}
    with pytest.raises(UserError) as error:
        claims(begun, **fields)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in before} == before
    assert not (begun / "changes.jsonl").exists()


def test_a_field_of_a_newer_version_is_no_other_config(run, capsys):
    path = run / "config.json"
    fields = json.loads(path.read_text())
    del fields["log"]["stop_when_diverged"], fields["stages"]["stage1"]["ema_decay"]
    del fields["log"]["save_minutes"], fields["log"]["stop_after_skips"]
    del fields["policy"]["compute_dtype"]
    del fields["stages"]["stage2"]["sources"]["und"]["options"]["kinds"]["dense"]
    path.write_text(json.dumps(fields))
    (record,) = claims(run)
    # The weight of a kind of scene that is new is 0, so that is no change at all.
    names = {"log.save_minutes", "log.stop_after_skips"}
    names |= {"log.stop_when_diverged", "stages.stage1.ema_decay", "policy.compute_dtype"}
    assert set(record["changes"]) == names
    assert "config.policy.compute_dtype was not there, now 'float32'" in capsys.readouterr().err
    # What is held out of training now was trained on before.
    del fields["data"]["held_out"]
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"held_out was not there, now 0\.1"):
        claims(run, data__held_out=0.1)
    fields["stages"]["stage1"]["momentum"] = 0.5  # of a newer version, which this one would ignore
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"stage1\.momentum was 0\.5, now it is not there"):
        claims(run)


def test_a_model_that_is_gone_and_no_longer_needed_may_be_elsewhere(run):
    path = run / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"init_from": "models/gone"}))
    claims(run)
    # But a run that began from random numbers would only seem to start from a model.
    path.write_text(json.dumps(fields | {"init_from": ""}))
    with pytest.raises(UserError, match=r"init_from was '', now 'tests/\./data'"):
        claims(run)
    # And with nothing saved yet, it is what the run would start from.
    path.write_text(json.dumps(fields | {"init_from": "models/gone"}))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="init_from was 'models/gone'"):
        claims(run)


def test_a_change_of_the_result_can_be_allowed_by_name(run):
    rate, field = {"stages__stage1__learning_rate": 1e-4}, "stages.stage1.learning_rate"
    with pytest.raises(UserError, match=f"add --allow_change={field}$"):
        claims(run, **rate)
    with pytest.raises(UserError, match=r"Did you mean 'stages\.stage1\.learning_rate'"):
        claims(run, allow=("stages.stage1.learning_rat",), **rate)
    with pytest.raises(
        UserError, match=r"--allow_change: config\.stages\.stage1\.scenes has moved"
    ):
        claims(run, allow=("stages.stage1.scenes",))
    with pytest.raises(UserError, match="seed was 0, now 1"):  # only what is named
        claims(run, allow=(field,), seed=1, **rate)
    (record,) = claims(run, allow=(field,), **rate)
    assert record["changes"] == {field: [0.005, 1e-4]} and record["allowed"] == [field]
    assert record["at"]["stage1"] == 4
    # From now on that is the config, and the old one is another.
    claims(run, **rate)
    with pytest.raises(UserError, match=r"learning_rate was 0\.0001, now 0\.005"):
        claims(run)
    claims(run, allow=("stages.stage1", "data.row"), data__row__tokens=170, **rate)


@pytest.mark.parametrize(
    "fields",
    [
        {"stages__stage0_lm__learning_rate": 1.0},  # it has finished
        {"stages__stage1__trainable": ("decoder",)},
        {"stages__stage1__ema_decay": 0.0},
        {"model__overrides__vq__ch": 32},
        {"policy__param_dtype": "bfloat16"},
        {"stages__stage1__steps": 3},
    ],
    ids=str,
)
def test_what_a_checkpoint_could_not_follow_cannot_be_allowed(fields, run):
    allow = tuple(name.replace("__", ".") for name in fields)
    with pytest.raises(UserError, match="another config") as error:
        claims(run, allow=allow, **fields)
    assert "add --allow_change" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": "x"', "\x00" * 50])
def test_a_damaged_config_is_one_line(text, run):
    (run / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json .*damaged") as error:
        claims(run)
    assert "\n" not in str(error.value) and (run / "config.json").read_text() == text


def damaged(change):
    """config.json's fields after `change`."""
    return lambda fields: (change(fields), fields)[1]


DAMAGED = {
    "nothing": lambda f: {},
    "stages null": lambda f: {"stages": None},
    "order null": damaged(lambda f: f.update(stage_order=None)),
    "order empty": damaged(lambda f: f.update(stage_order=[])),
    "order of numbers": damaged(lambda f: f.update(stage_order=[1, 2])),
    "order of lists": damaged(lambda f: f.update(stage_order=[["stage1"]])),
    "order of a text": damaged(lambda f: f.update(stage_order="stage1")),
    "order of unknown": damaged(lambda f: f["stage_order"].append("stage9")),
    "stages list": damaged(lambda f: f.update(stages=[])),
    "stages empty": damaged(lambda f: f.update(stages={})),
    "stage null": damaged(lambda f: f["stages"].update(stage1=None)),
    "stage empty": damaged(lambda f: f["stages"].update(stage2={})),
    "steps null": damaged(lambda f: f["stages"]["stage2"].update(steps=None)),
    "no rate": damaged(lambda f: f["stages"]["stage1"].pop("learning_rate")),
    "sources null": damaged(lambda f: f["stages"]["stage1"].update(sources=None)),
    "no seed": damaged(lambda f: f.pop("seed")),
    "seed null": damaged(lambda f: f.update(seed=None)),
    "no model": damaged(lambda f: f.pop("model")),
    "model null": damaged(lambda f: f.update(model=None)),
    "model empty": damaged(lambda f: f.update(model={})),
    "no row": damaged(lambda f: f["data"].pop("row")),
    "no init_from": damaged(lambda f: f.pop("init_from")),
    "no tokenizer": damaged(lambda f: f.pop("tokenizer")),
    "another file": lambda f: {"format": "janus", "vocab": [1]},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_a_config_without_its_parts_is_damaged_and_accepts_no_other(change, run):
    path = run / "config.json"
    text = json.dumps(change(json.loads(path.read_text())))
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged \(.*put it back") as error:
        claims(run, seed=7)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert path.read_text() == text and not (run / "changes.jsonl").exists()


@pytest.mark.parametrize(
    "before", ['{"time": "2026-0', '{"time": "a"}', '{"time": "a"}\n', "", "\n"]
)
def test_a_record_of_a_change_has_a_line_of_its_own(before, run):
    (run / "changes.jsonl").write_text(before)
    made = config(init_from="tests/./data", name="other")
    with lock(run):
        init_or_verify_run_dir(run, made, build(made))
    lines = (run / "changes.jsonl").read_text().splitlines()
    assert lines[:-1] == before.splitlines()
    assert json.loads(lines[-1])["changes"] == {"name": ["janus_tiny_smoke", "other"]}


def test_a_record_that_cannot_be_written_leaves_the_earlier_ones(run, monkeypatch):
    (record,) = claims(run, name="other")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"no space left .*changes\.jsonl"):
            claims(run, name="third")
    assert claims(run, name="other") == [record]


# The directory


def test_the_second_run_in_a_directory_is_refused_until_the_first_ends(tmp_path):
    run = tmp_path / "run"
    held = f"in use by another run .process {os.getpid()} on"
    with lock(run), pytest.raises(UserError, match=held), lock(run):
        pytest.fail("two writers")
    with lock(run):
        pass


def test_kill_9_releases_the_directory(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from janus_jax.run.claim import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on"), lock(tmp_path / "run"):
            pytest.fail("two writers")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with lock(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_a_warning(monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path / "run"):
        assert "No locks available" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["config.tmp", ".config.json.123.tmp", ".lock"])
def test_what_a_full_disk_left_of_a_claim_does_not_refuse_the_directory(left, tmp_path):
    (tmp_path / left).touch()
    claims(tmp_path)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints", "config.yaml"])
def test_what_is_no_run_is_left_alone(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="not empty and holds no run"):
        claims(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_run_whose_config_is_gone_is_told_from_something_else(run):
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"a run whose config\.json is missing: put it back"):
        claims(run)
    assert not (run / "config.json").exists()
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"a run whose config\.json is missing"):
        claims(run)


def test_a_typo_in_what_is_allowed_makes_no_directory(tmp_path):
    with pytest.raises(UserError, match=r"no field 'sead' in the config\. Did you mean 'seed'"):
        train(config(), tmp_path / "run", allow_change=("sead",))
    assert list(tmp_path.iterdir()) == []


UNREADABLE = {
    "checkpoints/stage1": (Path, "iterdir", "read"),
    "": (Path, "iterdir", "read"),
    ".lock": (Path, "open", "write to"),
    ".changes.jsonl": (Path, "write_bytes", "write to"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_not_called_a_failed_write(name, run, monkeypatch):
    owner, method, doing = UNREADABLE[name]
    usual, refused = getattr(owner, method), run / name

    def refuse(self, *args, **kwargs):
        if self == refused or (name == ".changes.jsonl" and self.name.startswith(name)):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, refuse)
    with pytest.raises(UserError) as error:
        claims(run, name="other")
    refused = run / ("changes.jsonl" if name == ".changes.jsonl" else name)  # as people know it
    place = rf"(the run directory {re.escape(str(run))}|{re.escape(str(refused))})"
    assert re.match(rf"cannot {doing} {place}: Permission denied", str(error.value))
    assert str(refused) in str(error.value) and "\n" not in str(error.value)


def test_a_process_that_sees_another_directory_is_named(monkeypatch, tmp_path):
    check_shared(tmp_path / "none")  # one process: nothing to see
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(place_module, "first_only", lambda work: work())
    seen = []
    monkeypatch.setattr(place_module, "who_lacks", lambda mine: seen.append(mine) or [])
    check_shared(tmp_path)
    assert seen == [True] and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(place_module, "who_lacks", lambda mine: [1, 3])
    with pytest.raises(UserError, match=f"process 1, 3 does not see .*{tmp_path} on ") as error:
        check_shared(tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
    # In a process that looks elsewhere.
    monkeypatch.setattr(place_module, "first_only", lambda work: [".shared-x.tmp", "/a on host"])
    monkeypatch.setattr(place_module, "_PATIENCE", 0.3)
    monkeypatch.setattr(place_module, "who_lacks", lambda mine: [] if mine else [1])
    with pytest.raises(UserError, match="process 1 does not see"):
        check_shared(tmp_path)
    threading.Timer(0.1, (tmp_path / ".shared-x.tmp").touch).start()
    check_shared(tmp_path)  # late, as on a network disk


def test_a_directory_that_cannot_be_is_one_line(tmp_path):
    (file := tmp_path / "file").touch()
    for place in (file, file / "below"):
        with pytest.raises(UserError, match="cannot write to the run directory"):
            claims(place)
