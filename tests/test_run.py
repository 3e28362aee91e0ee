"""Whole runs: stages in order, each from the one before; what a directory holds."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smoke import STAGES, tiny

from janus_jax.checkpoints import StageCheckpoints, save_model
from janus_jax.errors import RunError, UserError
from janus_jax.models import init_params
from janus_jax.run import build, claim, starting, train, training_run
from janus_jax.run.scoring import Evaluator
from janus_jax.training.objectives import siglip

pytestmark = pytest.mark.heavy


def test_what_a_later_stage_cannot_do_is_said_before_anything_is_there(trainer, tmp_path):
    fields = {"mesh__data": 2, "stages__stage2__batch_size": 7}
    with pytest.raises(UserError, match=r"stage2\.batch_size: 7 rows do not"):
        train(tiny(**fields), tmp_path / "run", quiet=True)
    assert trainer.ran == [] and not (tmp_path / "run").exists()


def test_a_pattern_that_no_parameter_matches_is_an_error_before_anything_is_there(
    trainer, tmp_path
):
    fields = {"stages__stage2__trainable": ("decoder/layer/**", "und_adaptor")}
    with pytest.raises(UserError, match=r"stages\.stage2: .*Did you mean 'decoder/layers"):
        train(tiny(**fields), tmp_path / "run", quiet=True)
    assert trainer.ran == [] and not (tmp_path / "run").exists()
    build(tiny(stages__stage2__trainable=("**/kernel", "decoder/final_norm")))


# Stages in order


class Trainer:
    """Stands in for `run_stage`: adds one to what trains, saves, and remembers what it was given."""

    def __init__(self):
        self.ran, self.fail, self.given = [], None, {}

    def __call__(self, stage, step_fn, params, iterator, directory, log, mesh, **_):
        self.given[stage.name] = jax.device_get(params)
        if stage.name == self.fail:
            raise RunError(f"{stage.name} step 3: not finite")
        self.ran.append(stage.name)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            with StageCheckpoints(directory) as checkpoints:
                params = checkpoints.restore_params(checkpoints.latest_step())
        params = {
            k: jax.tree.map(lambda x: x + 1, v) if k in stage.trainable else v
            for k, v in params.items()
        }
        with StageCheckpoints(directory) as checkpoints:
            checkpoints.save(stage.steps, params, {"step": np.ones((), np.int32)}, iterator)
        return params


@pytest.fixture
def trainer(monkeypatch):
    trainer = Trainer()

    def zeros(model, key):
        shapes = jax.eval_shape(lambda k: init_params(model, k), key)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    monkeypatch.setattr(training_run, "run_stage", trainer)
    monkeypatch.setattr(starting, "init_params", zeros)
    monkeypatch.setattr(siglip, "init_heads", lambda *_: {"head": jnp.zeros(2)})
    monkeypatch.setattr(training_run, "write_report", lambda _: None)
    return trainer


def level(params):
    """How often each group has been trained."""
    return {k: int(np.ravel(jax.tree.leaves(v)[0])[0]) for k, v in params.items()}


UNTRAINED = dict.fromkeys(
    ("siglip", "und_adaptor", "gen_embed", "gen_adaptor", "image_head", "decoder", "vq"), 0
)
ADAPTORS = dict.fromkeys(("und_adaptor", "gen_embed", "gen_adaptor", "image_head"), 1)


def test_each_stage_starts_from_the_one_before(trainer, tmp_path):
    train(tiny(), tmp_path / "run", quiet=True)
    assert trainer.ran == list(STAGES)
    found = {name: level(params) for name, params in trainer.given.items()}
    assert found["stage0_siglip"] == {**UNTRAINED, "aux": 0}
    assert found["stage0_lm"] == {**UNTRAINED, "siglip": 1}  # without what only stage 0 needs
    assert found["stage1"] == {**UNTRAINED, "siglip": 1, "decoder": 1}
    assert found["stage2"] == {**UNTRAINED, "siglip": 1, "decoder": 1, **ADAPTORS}
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.json", "janus.json", "stages.json", "scores.json", "checkpoints"} <= files
    assert json.loads((tmp_path / "run" / "stages.json").read_text()) == list(STAGES)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert all(scores[name]["train_seconds"] > 0 for name in STAGES)
    # The same command again does nothing.
    trainer.ran.clear()
    train(tiny(), tmp_path / "run", quiet=True)
    assert trainer.ran == []


def test_a_failed_run_goes_on_at_the_stage_that_failed(trainer, tmp_path):
    trainer.fail = "stage1"
    with pytest.raises(RunError, match="stage1 step 3"):
        train(tiny(), tmp_path / "run", quiet=True)
    assert trainer.ran == ["stage0_siglip", "stage0_lm"]
    trainer.fail = None
    train(tiny(), tmp_path / "run", quiet=True)
    assert trainer.ran == list(STAGES)
    assert level(trainer.given["stage1"]) == {**UNTRAINED, "siglip": 1, "decoder": 1}


def test_one_stage_alone(trainer, tmp_path):
    only = tiny(only_stage="stage1")
    with pytest.raises(UserError, match="starts from stage0_lm, which has not finished"):
        train(only, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no stage 'stage9'"):
        train(tiny(only_stage="stage9"), tmp_path / "run", quiet=True)
    # Which stage to run is no part of the config that a directory holds.
    for name in STAGES:
        train(tiny(only_stage=name), tmp_path / "run", quiet=True)
    assert trainer.ran == list(STAGES)
    assert level(trainer.given["stage2"])["decoder"] == 1


# Steps saved of each stage, the one that is run alone, init_from, and what must be run first (None: nothing).
ALONE = [
    ({"stage0_siglip": 6}, "stage1", "", "stage0_lm"),
    ({"stage0_siglip": 6}, "stage2", "", "stage0_lm"),
    ({"stage0_lm": 6}, "stage2", "", "stage1"),
    ({"stage0_lm": 6, "stage1": 4}, "stage2", "", "stage1"),
    ({"stage1": 4}, "stage2", "", "stage1"),
    ({"stage0_siglip": 3}, "stage2", "", "stage0_siglip"),
    ({}, "stage2", "", "stage0_siglip"),
    ({"stage0_lm": 6}, "stage2", "model", "stage1"),
    ({"stage1": 4}, "stage2", "model", "stage1"),
    ({}, "stage2", "model", None),
    ({"stage1": 6}, "stage2", "", None),
    ({"stage0_siglip": 6, "stage0_lm": 6, "stage1": 6}, "stage2", "", None),
    ({"stage2": 4}, "stage2", "", None),
    ({}, "stage0_siglip", "", None),
]


@pytest.mark.parametrize(("saved", "alone", "model", "needed"), ALONE, ids=str)
def test_a_stage_alone_starts_from_the_end_of_the_one_directly_before(
    saved, alone, model, needed, tmp_path
):
    experiment = build(tiny(only_stage=alone, init_from=model))
    for name, step in saved.items():
        (tmp_path / "checkpoints" / name / str(step) / "params").mkdir(parents=True)
    stage = next(s for s in experiment.stages if s.name == alone)
    if needed is None:
        starting.check_start(experiment, tmp_path, stage)
        return
    before = STAGES[STAGES.index(alone) - 1]
    said = (
        f"{alone} starts from {before}, which has not finished .*: run --config.only_stage={needed}"
    )
    with pytest.raises(UserError, match=said) as error:
        starting.check_start(experiment, tmp_path, stage)
    assert ("--config.init_from=DIR" in str(error.value)) == (not saved)


def test_a_run_does_not_go_on_past_a_stage_that_has_not_finished(trainer, tmp_path):
    run_dir = tmp_path / "run"
    train(tiny(stage_order=STAGES[:2]), run_dir, quiet=True)
    trainer.ran.clear()
    with pytest.raises(UserError, match="stage2 starts from stage1, which has not finished"):
        train(tiny(only_stage="stage2"), run_dir, quiet=True)
    assert trainer.ran == [] and not (run_dir / "changes.jsonl").exists()
    train(tiny(), run_dir, quiet=True)
    assert trainer.ran == ["stage1", "stage2"]


def test_a_stage_that_nothing_would_use_is_not_trained(trainer, tmp_path):
    run_dir = tmp_path / "run"
    train(tiny(), run_dir, quiet=True)
    trainer.ran.clear()
    shutil.rmtree(run_dir / "checkpoints" / "stage1")
    before = (run_dir / "config.json").read_bytes()
    for fields in ({}, {"only_stage": "stage1"}, {"log__save_every": 5}):
        with pytest.raises(
            UserError, match=r"stage2 has begun in .* without stage1.*stage=stage2,"
        ):
            train(tiny(**fields), run_dir, quiet=True)
    more = tiny(stage_order=(*STAGES, "stage3"))
    with pytest.raises(UserError, match=r"go on with --config\.only_stage=stage3,"):
        train(more, run_dir, quiet=True)
    assert trainer.ran == [] and (run_dir / "config.json").read_bytes() == before
    # What the message says helps, both ways.
    train(tiny(only_stage="stage3", stage_order=(*STAGES, "stage3")), run_dir, quiet=True)
    assert trainer.ran == ["stage3"]
    for name in ("stage2", "stage3"):
        shutil.move(run_dir / "checkpoints" / name, tmp_path / name)
    train(more, run_dir, quiet=True)
    assert trainer.ran == ["stage3", "stage1", "stage2", "stage3"]


def test_a_run_can_start_from_a_saved_model(trainer, tmp_path):
    experiment = build(tiny())
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda k: init_params(experiment.model, k), key)
    save_model(
        tmp_path / "model",
        config=experiment.janus_config,
        processor=experiment.processor.config.to_dict(),
        tokenizer_json=experiment.processor.tokenizer.to_json(),
        params=jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), shapes),
    )
    config = tiny(init_from=str(tmp_path / "model"), only_stage="stage2")
    train(config, tmp_path / "run", quiet=True)
    assert trainer.ran == ["stage2"] and set(level(trainer.given["stage2"]).values()) == {7}
    other = tiny(init_from=str(tmp_path / "model"), model__overrides={"decoder": {"width": 32}})
    with pytest.raises(UserError, match="init_from"):
        train(other, tmp_path / "other", quiet=True)


def test_a_directory_belongs_to_one_config(trainer, tmp_path):
    train(tiny(), tmp_path / "run", quiet=True)
    before = {p: p.read_bytes() for p in (tmp_path / "run").glob("*.json")}
    with pytest.raises(UserError, match=r"config\.stages\.stage2\.learning_rate was 0\.002, now 3"):
        train(tiny(stages__stage2__learning_rate=3.0), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"config\.seed was 0, now 1"):
        train(tiny(seed=1), tmp_path / "run", quiet=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").glob("*.json")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train(tiny(), tmp_path / "mine", quiet=True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_more_steps_and_more_stages_of_a_finished_run(trainer, monkeypatch, tmp_path):
    scored = []
    monkeypatch.setattr(
        Evaluator, "score", lambda self, stage, *_, final, quiet: scored.append((stage.name, final))
    )
    run_dir = tmp_path / "run"
    train(tiny(), run_dir, quiet=True)
    write_scores = {name: {"train_seconds": 1.0, "mini_geneval": {}} for name in STAGES}
    (run_dir / "scores.json").write_text(json.dumps(write_scores))
    trainer.ran.clear()
    train(tiny(stages__stage2__steps=9, log__save_every=5), run_dir, quiet=True)
    assert trainer.ran == ["stage2"] and scored[-1] == ("stage2", True)
    # The score of step 6 is none of step 9.
    scores = json.loads((run_dir / "scores.json").read_text())
    assert "mini_geneval" not in scores["stage2"] and scores["stage2"]["train_seconds"] > 1
    assert "mini_geneval" in scores["stage1"]
    more = tiny(stages__stage2__steps=9, stage_order=(*STAGES, "stage3"))
    train(more, run_dir, quiet=True)
    assert trainer.ran == ["stage2", "stage3"] and scored[-1] == ("stage3", True)
    assert json.loads((run_dir / "stages.json").read_text()) == [*STAGES, "stage3"]
    assert len((run_dir / "changes.jsonl").read_text().splitlines()) == 2


def test_frozen_random_language_models_are_warned_about_under_any_name(trainer, tmp_path, capsys):
    config = tiny(stage_order=("stage1",))
    config.stages.adaptors = config.stages.stage1
    config.stage_order = ("adaptors",)
    train(config, tmp_path / "run", quiet=True)
    assert "the adaptors train on a frozen random language model" in capsys.readouterr().err
    train(tiny(stage_order=("stage2",)), tmp_path / "other", quiet=True)
    assert "random language model" not in capsys.readouterr().err


def test_a_model_to_start_from_is_needed_only_once(trainer, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        train(tiny(init_from=str(tmp_path / "gone")), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    train(tiny(), tmp_path / "model", quiet=True)
    config = tiny(init_from=str(tmp_path / "model"), stage_order=("stage1", "stage2"))
    trainer.fail = "stage2"
    with pytest.raises(RunError):
        train(config, tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "model")
    trainer.fail = None
    train(config, tmp_path / "run", quiet=True)
    assert trainer.ran[-2:] == ["stage1", "stage2"]


def test_a_run_in_use_is_refused(trainer, tmp_path):
    with claim.lock(tmp_path / "run"), pytest.raises(UserError, match="in use by another run"):
        train(tiny(), tmp_path / "run", quiet=True)
    assert trainer.ran == []
    train(tiny(), tmp_path / "run", quiet=True)
    assert trainer.ran == list(STAGES)


def test_a_run_killed_while_it_claims_its_directory_can_be_started_again(
    trainer, monkeypatch, tmp_path
):
    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(claim, "write_json", kill)
        with pytest.raises(Killed):
            train(tiny(), tmp_path / "run", quiet=True)
    train(tiny(), tmp_path / "run", quiet=True)
    assert trainer.ran == list(STAGES)
