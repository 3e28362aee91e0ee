"""A rate that goes by the steps of its stage: the steps of a run that has begun are part of its result."""

import pytest
from smoke import tiny

from janus_jax.errors import UserError
from janus_jax.run import build
from janus_jax.run.claim import init_or_verify_run_dir, lock

ORDER = ("stage1", "stage2")


def claims(run, steps, optimizer, allow=()):
    """Claims the directory `run` for a config with these steps and options of stage1."""
    config = tiny(stage_order=ORDER, stages__stage1__steps=steps, stages__stage1__warmup_steps=0)
    with config.unlocked():
        config.stages.stage1.options = dict(optimizer=optimizer)
    with lock(run):
        init_or_verify_run_dir(run, config, build(config), allow)


def save(run, stage, step):
    """What looks like a checkpoint."""
    (run / "checkpoints" / stage / str(step) / "params").mkdir(parents=True)


BY_STEPS = [{"schedule": "cosine"}, {"warmup_share": 0.1}]
FIELD = "stages.stage1.steps"


@pytest.mark.parametrize("optimizer", BY_STEPS, ids=str)
def test_the_steps_change_only_where_that_is_allowed(optimizer, tmp_path):
    run = tmp_path / "run"
    claims(run, 6, optimizer)
    claims(run, 8, optimizer)  # nothing is done yet
    for done in (4, 8):  # in the middle, and at the end
        save(run, "stage1", done)
        with pytest.raises(UserError, match=f"rate of the {done} .* add --allow_change={FIELD}$"):
            claims(run, 20, optimizer)
    claims(run, 20, optimizer, (FIELD,))
    with pytest.raises(UserError, match="though 8 are done") as error:
        claims(run, 7, optimizer, (FIELD,))
    assert "add --allow_change" not in str(error.value)
    save(run, "stage2", 1)
    with pytest.raises(UserError, match="though stage2 has begun") as error:
        claims(run, 30, optimizer, (FIELD,))
    assert "add --allow_change" not in str(error.value)


def test_without_them_the_steps_are_free(tmp_path):
    run = tmp_path / "run"
    claims(run, 6, {"schedule": "constant", "final_share": 0.5})
    save(run, "stage1", 6)
    claims(run, 20, {"schedule": "constant", "final_share": 0.5})


def test_a_constant_rate_does_not_become_a_cosine_in_silence(tmp_path):
    run = tmp_path / "run"
    claims(run, 6, {"schedule": "constant"})
    save(run, "stage1", 4)
    with pytest.raises(UserError, match="schedule was 'constant', now 'cosine'"):
        claims(run, 6, {"schedule": "cosine"})
