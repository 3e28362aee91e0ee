"""The step of a run that is asked for by number or as the best: of `Janus.load`, sample.py and adapters."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from adapter_files import CONFIG

from janus_jax.checkpoints import StageCheckpoints, best_step, save_model, write_metadata
from janus_jax.cli import sample
from janus_jax.errors import UserError
from janus_jax.inference import Janus
from janus_jax.models import JanusModel, init_params
from janus_jax.processing import ProcessorConfig, build_word_tokenizer

WORDS = ["a", "red", "cat"]
MODEL = JanusModel(CONFIG)
SHAPES = jax.eval_shape(lambda key: init_params(MODEL, key), jax.random.key(0))
PROCESSOR = ProcessorConfig.from_model(CONFIG).to_dict()


def write_run(path, stages):
    """A run whose stages have steps with metrics: {stage: {step: metrics}}."""
    write_metadata(path, CONFIG, PROCESSOR, build_word_tokenizer(WORDS).to_json())
    (path / "stages.json").write_text(json.dumps(list(stages)))
    for stage, steps in stages.items():
        with StageCheckpoints(path / "checkpoints" / stage, keep=9) as checkpoints:
            for step, metrics in steps.items():
                params = jax.tree.map(lambda x, s=step: np.full(x.shape, s, np.float32), SHAPES)
                checkpoints.save(step, params, {"step": np.int32(step)}, {}, metrics)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    second = {3: {"held_out": 2.0, "loss": 9}, 6: {"held_out": 1.0}, 9: {"held_out": 4, "loss": 1}}
    stages = {"stage1": {6: {"loss": 0.1}}, "stage2": second}
    return write_run(tmp_path_factory.mktemp("runs") / "run", stages)


@pytest.mark.parametrize(
    ("steps", "best"),
    [
        ({3: {"loss": 2.0}, 6: {"loss": 1.0}, 9: {"loss": 4.0}}, 6),
        ({3: {"loss": 1.0}, 6: {"loss": 1.0}}, 6),  # of equals the newer one
        ({3: {"loss": 1.0, "held_out": 5.0}, 6: {"loss": 9.0, "held_out": 2.0}}, 6),
        # One that was saved without, as who asks to stop does not wait for it, is none of the best.
        ({3: {"held_out": 5.0}, 6: {"loss": 0.1}}, 3),
        ({3: {"held_out": float("nan"), "loss": 3.0}, 6: {"loss": 2.0}}, 6),
    ],
)
def test_the_best_has_the_lowest_loss(steps, best, tmp_path):
    assert best_step(write_run(tmp_path / "run", {"stage2": steps})) == ("stage2", best)


def test_damaged_metrics_are_none_of_the_best(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "checkpoints" / "stage2" / "6" / "metrics" / "metrics"
    path.write_text("{")
    assert best_step(copy) == ("stage2", 3)
    for step in (3, 9):
        (copy / "checkpoints" / "stage2" / str(step) / "metrics" / "metrics").write_text("[]")
    with pytest.raises(UserError, match=r"no checkpoint of stage2 says its loss.*\(3, 6, 9\)"):
        best_step(copy)


@pytest.mark.parametrize(("step", "found"), [("best", 6), (3, 3), (None, 9)])
def test_a_model_is_loaded_at_the_step_that_is_asked_for(run, step, found):
    janus = Janus.load(run, step, dtype="float32")
    assert (janus.origin["stage"], janus.origin["step"]) == ("stage2", found)
    assert float(janus.weights["final_norm"][0]) == found
    # A directory of the run's checkpoints is the stage, too.
    stage = Janus.load(run / "checkpoints" / "stage2", step, dtype="float32")
    assert stage.origin["step"] == found


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (4, "no checkpoint of step 4; it has stage2: 3, 6, 9; stage1: 6"),
        ("bets", "step must be a whole number or 'best', not another text"),
        (-1, "step must be"),
        (True, "step must be"),
    ],
)
def test_a_step_that_is_not_there_is_one_line(run, step, message):
    with pytest.raises(UserError, match=message) as error:
        Janus.load(run, step)
    assert "\n" not in str(error.value)


def test_a_model_has_no_best_step(tmp_path):
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), SHAPES)
    tokenizer = build_word_tokenizer(WORDS).to_json()
    save_model(tmp_path / "model", CONFIG, PROCESSOR, tokenizer, params)
    with pytest.raises(UserError, match="is a model, not a training run"):
        Janus.load(tmp_path / "model", "best")
    with pytest.raises(UserError, match="no such directory"):
        best_step(tmp_path / "nothing")


def test_the_command_says_and_records_which_step(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample, "draw", lambda *_: {"images": []})
    flags = ["--checkpoint", run, "--step", "best", "--prompt", WORDS[0], "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, flags)])
    sample.main()
    assert "step 6 of stage2\n" in capsys.readouterr().err
    record = json.loads((tmp_path / "samples.json").read_text())
    assert (record["stage"], record["step"]) == ("stage2", 6)


@pytest.mark.parametrize("step", ["bset", "1.5", "-3", "", "9" * 30, "\x1b[31m"])
def test_a_step_that_is_none_is_refused_before_anything_is_read(step, monkeypatch):
    flags = ["--checkpoint", "nothing", f"--step={step}", "--prompt", "a"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *flags])
    with pytest.raises(UserError, match="--step: must be the number of a step or best") as error:
        sample.main()
    assert "\x1b" not in str(error.value)
