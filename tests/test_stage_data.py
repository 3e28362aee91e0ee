"""The batches of a stage: whether they can be made at all, and where they go on."""

import json

import numpy as np
import pytest
from dummies_data import DummySource
from smoke import tiny

from janus_jax.data import SOURCES
from janus_jax.errors import UserError
from janus_jax.run import batches, build
from janus_jax.run.stage_checks import check_stages


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__row__tokens": 76}, r"data\.row\.tokens: 76 is too few for stage0_lm"),
        ({"data__row__tokens": 76, "stage_order": ("stage1",)}, r"stage1, .*\(gen\) has 7[78]"),
        ({"data__row__targets": 34}, r"data\.row\.targets: 34 is too few for stage0_lm"),
        ({"data__row__und_images": 0}, r"data\.row\.und_images: 0 is too few for stage1"),
        ({"data__row__gen_images": 0}, r"data\.row\.gen_images: 0 is too few for stage1"),
        ({"mesh__data": 2, "stages__stage2__batch_size": 7}, "stage2.batch_size: 7 rows do not"),
        ({"mesh__fsdp": -1, "stages__stage0_siglip__batch_size": 9}, "stage0_siglip.batch_size"),
    ],
    ids=str,
)
def test_what_a_stage_cannot_do_is_said_beforehand(fields, message):
    experiment = build(tiny(**fields))
    with pytest.raises(UserError, match=message):
        check_stages(experiment, experiment.stages)


def test_a_row_that_is_just_long_enough_is_accepted():
    row = {"data__row__tokens": 80, "data__row__targets": 40, "data__row__und_images": 1}
    experiment = build(tiny(**row, data__row__gen_images=1, stage_order=("stage1",)))
    check_stages(experiment, experiment.stages)


def test_a_sequence_that_no_row_can_hold_is_one_line_when_it_comes():
    iterator = batches(experiment := build(tiny(data__row__tokens=60)), experiment.stages[2])
    with pytest.raises(UserError, match=r"stage1: a sequence is longer .*\(.*60\)") as error:
        for _ in range(20):
            next(iterator)
    assert "\n" not in str(error.value)
    iterator.close()


def test_what_is_too_long_may_be_left_out_or_shortened(capsys):
    for policy, said in (("reject", "left out"), ("truncate_answer", "shortened")):
        fields = {"data__row__tokens": 60, "data__too_long": policy, "stage_order": ("stage0_lm",)}
        experiment = build(tiny(**fields))
        check_stages(experiment, experiment.stages)
        iterator = batches(experiment, experiment.stages[0])
        assert next(iterator)["tokens"].shape == (8, 60)
        iterator.close()
        error = capsys.readouterr().err
        assert (
            error.startswith("stage0_lm: of the records that were read, text: ") and said in error
        )
        assert len(error.splitlines()) == 1


def test_rows_that_have_room_for_nothing_are_refused():
    fields = {"data__row__tokens": 20, "data__too_long": "reject", "stage_order": ("stage1",)}
    experiment = build(tiny(**fields))
    with pytest.raises(UserError, match=r"no row of stage1 has room for any of the first 100"):
        check_stages(experiment, experiment.stages)


def test_data_with_codes_makes_batches_of_codes():
    SOURCES.register("dummy/codes", lambda task, seed=0: DummySource(task, seed, codes=36))
    config = tiny(stage_order=("stage1",))
    config.stages.stage1.sources.gen = {"name": "dummy/codes", "task": "gen"}
    experiment = build(config)
    check_stages(experiment, experiment.stages)
    iterator = batches(experiment, experiment.stages[0])
    batch = next(iterator)
    iterator.close()
    assert batch["gen_codes"].shape == (8, 3, 36) and "gen_images" not in batch
    labels = [source.label for source in experiment.stages[0].sources]
    assert labels == ["gen", "text", "und"]  # by name, and so numbered
    drawn, asked = batch["gen_weights"] > 0, batch["target_weights"] > 0
    assert set(batch["gen_sources"][drawn]) == {0} and set(batch["target_sources"][asked]) == {2}


def test_data_goes_on_where_it_was_or_in_an_order_not_seen(capsys):
    def taken(experiment, state=None, count=3):
        iterator = batches(experiment, experiment.stages[3])
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
        found = [next(iterator)["tokens"] for _ in range(count)]
        state = iterator.get_state()
        iterator.close()
        return found, state

    experiment = build(tiny())
    whole, _ = taken(experiment, count=6)
    first, state = taken(experiment)
    second, _ = taken(experiment, state)
    np.testing.assert_array_equal(np.stack([*first, *second]), np.stack(whole))
    # Older checkpoints hold the position alone.
    again, _ = taken(experiment, state["position"])
    np.testing.assert_array_equal(again, second)
    assert capsys.readouterr().err == ""
    # With another batch no position means anything: rows that the run has not seen, and those again.
    other = build(tiny(stages__stage2__batch_size=4))
    new, restarted = taken(other, state)
    assert "stage2: the data goes on in a new order (batch_size was 8, now 4)" in (
        capsys.readouterr().err
    )
    seen = {row.tobytes() for batch in whole for row in batch}
    assert not any(row.tobytes() in seen for batch in new for row in batch)
    np.testing.assert_array_equal(taken(other, state)[0], new)
    went_on, _ = taken(other, restarted)
    np.testing.assert_array_equal(taken(other, state, 6)[0][3:], went_on)
    # A field that an older version did not know is no difference.
    del state["settings"]["sources"]
    np.testing.assert_array_equal(taken(experiment, state)[0], second)
