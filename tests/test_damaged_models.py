"""Models and runs that are read: damage is found, a run is read at its newest whole step."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from janus_jax.checkpoints import (
    StageCheckpoints,
    checksums,
    load_model,
    save_model,
    write_metadata,
)
from janus_jax.config import JANUS_TINY
from janus_jax.configs import janus_tiny
from janus_jax.errors import UserError
from janus_jax.files import read_json
from janus_jax.models import JanusModel, init_params
from janus_jax.run import build
from janus_jax.run.claim import init_or_verify_run_dir
from janus_jax.run.scores import ScoreStore
from janus_jax.training import MetricsLog, read_metrics

pytestmark = pytest.mark.heavy


def flip_a_bit(tree):
    """In the middle of the largest array file."""
    files = (tree / "ocdbt.process_0" / "d").iterdir()
    path = max(files, key=lambda file: file.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two stages with weights of its architecture; each step's are step + weight."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    write_metadata(directory, JANUS_TINY, {}, "{}")
    (directory / "stages.json").write_text('["first", "second"]')
    shapes = jax.eval_shape(lambda key: init_params(JanusModel(JANUS_TINY), key), jax.random.key(0))
    for stage, steps in (("first", (3, 7)), ("second", (2, 4))):
        with StageCheckpoints(directory / "checkpoints" / stage) as checkpoints:
            for step in steps:
                params = jax.tree.map(lambda s, step=step: np.full(s.shape, step, s.dtype), shapes)
                checkpoints.save(step, params, {"step": np.int32(step)}, {})
    return directory


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def hurt(run, stage, step, item="params"):
    flip_a_bit(run / "checkpoints" / stage / str(step) / item)


def listing(directory):
    return {p: p.stat().st_mtime_ns for p in directory.rglob("*")}


def test_a_run_is_read_at_its_newest_whole_step_and_not_touched(copy, capfd):
    def loaded(**options):
        model = load_model(copy, **options)
        leaf = jax.tree.leaves(model.params)[0]
        assert (leaf == model.origin["step"]).all()
        return model.origin["stage"], model.origin["step"], capfd.readouterr().err.splitlines()

    assert loaded() == ("second", 4, [])
    hurt(copy, "second", 4, "state")  # not read
    before = listing(copy)
    assert loaded() == ("second", 4, [])
    hurt(copy, "second", 4)
    before = listing(copy)
    stage, step, err = loaded()
    assert (stage, step) == ("second", 2) and len(err) == 1
    assert "4 is damaged: params/" in err[0] and "step 2 of second is used instead" in err[0]
    assert loaded(step=7) == ("first", 7, [])
    with pytest.raises(UserError, match="4 is damaged"):
        load_model(copy, step=4)
    hurt(copy, "second", 2)
    before = listing(copy)
    stage, step, err = loaded()
    assert (stage, step) == ("first", 7) and len(err) == 2
    with pytest.raises(UserError, match="no whole checkpoint is left") as error:
        load_model(copy, stage="second")
    assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match="no checkpoint of step 5; it has second: 2, 4; first: 3, 7"
    ):
        load_model(copy, step=5)
    assert load_model(copy, verify=False).origin["step"] == 4
    assert listing(copy) == before


def test_a_step_that_a_run_deletes_meanwhile_is_no_damage(copy, capfd, monkeypatch):
    real = checksums.damage

    def deleted(directory, *args):
        if directory.name == "4":
            shutil.rmtree(directory)
        return real(directory, *args) or (None if directory.exists() else "gone")

    monkeypatch.setattr(checksums, "damage", deleted)
    assert load_model(copy).origin["step"] == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["", "[", '["first"', "{}", "null"])
def test_a_damaged_list_of_stages_is_one_line(copy, text):
    (copy / "stages.json").write_text(text)
    with pytest.raises(UserError, match=r"stages\.json") as error:
        load_model(copy)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_of_a_model_is_found_and_an_edited_card_told(run, tmp_path, capfd):
    loaded, place = load_model(run), tmp_path / "model"
    save_model(place, loaded.config, {"cfg_weight": 5.0}, "{}", loaded.params)
    load_model(place)
    assert capfd.readouterr() == ("", "")
    metadata = place / "janus.json"
    metadata.write_text(metadata.read_text().replace("5.0", "7.0"))
    assert load_model(place).processor == {"cfg_weight": 7.0}
    assert "janus.json differs from its checksum: it was edited, or is damaged" in (
        capfd.readouterr().err
    )
    assert load_model(place, verify=False).processor == {"cfg_weight": 7.0}
    assert capfd.readouterr() == ("", "")
    flip_a_bit(place / "params")
    with pytest.raises(UserError, match=r"model is damaged: params/.* differs.*convert the model"):
        load_model(place)
    load_model(place, verify=False)


# The small files of a run


@pytest.mark.parametrize("text", ["", " \n", "{", '{"a": 1', "[]", "null", "\x00\x00", "[" * 10**5])
def test_damaged_small_files_are_one_line_that_says_what_to_do(tmp_path, text):
    config = janus_tiny.get_config("smoke")
    config.mesh.fsdp = 1
    experiment = build(config)
    for name, read, advice in (
        ("config.json", lambda: init_or_verify_run_dir(tmp_path, config, experiment), "--workdir"),
        ("scores.json", ScoreStore(tmp_path).read, "move it away"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=rf"{name} .*{advice}") as error:
            read()
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
        assert [p.name for p in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


RECORDS = [{"stage": "a", "step": i, "loss": float(i)} for i in range(1, 9)]


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"garbage", b"", b"\xff\xfe\x00\x00", b'{"stage": "a", "st', b"5", b"{}"),
        *(b'{"stage": 1}', b"[" * 10**5, b'{"stage": "a", "step": "x"}', "{\u2028}".encode()),
    ],
)
def test_a_garbage_line_costs_no_later_history(tmp_path, capfd, garbage):
    log = MetricsLog(tmp_path)
    lines = [json.dumps(record).encode() for record in RECORDS]
    log.path.write_bytes(b"\n".join([*lines[:2], garbage, *lines[2:], b""]))
    assert log.read() == RECORDS == read_metrics(log.path)
    capfd.readouterr()
    log.start_stage("a", 7)
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "left out 1 of its 9 lines (line 3)" in err
    assert log.read() == RECORDS[:7]
    assert capfd.readouterr() == ("", "")
    log.close()


def test_a_line_cut_by_a_kill_is_no_damage(tmp_path, capfd):
    log = MetricsLog(tmp_path)
    whole = "".join(json.dumps(record) + "\n" for record in RECORDS)
    last = len(json.dumps(RECORDS[-1]))
    for cut in range(1, last + 2):
        log.path.write_text(whole[:-cut])
        assert log.read() == (RECORDS if cut == 1 else RECORDS[:-1])
    log.close()
    assert capfd.readouterr() == ("", "")


def test_checking_is_no_part_of_what_a_run_is(tmp_path):
    config = janus_tiny.get_config("smoke")
    config.mesh.fsdp = 1
    experiment = build(config)
    init_or_verify_run_dir(tmp_path, config, experiment)
    config.log.verify = False
    init_or_verify_run_dir(tmp_path, config, experiment)


def test_a_path_whose_bytes_are_not_utf_8_survives_in_the_metadata(tmp_path):
    origin = {"from": os.fsdecode(b"models/m\xff")}
    write_metadata(tmp_path, JANUS_TINY, {"system_prompt": "höflich"}, "{}", origin)
    assert read_json(tmp_path / "janus.json")["origin"] == origin
