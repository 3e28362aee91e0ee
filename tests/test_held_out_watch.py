"""Held-out losses in the loop of a stage: when they are computed, what is kept by them, and when they end it."""

import json
import math
import signal

import pytest
from test_loop import run_toy, toy_step

from janus_jax.checkpoints import Keep, finished_steps
from janus_jax.run.report import write_report
from janus_jax.training import HeldOutWatch, MetricsLog, Stage, Stopped, StoppedEarly

pytestmark = pytest.mark.heavy


def stage(steps):
    return Stage("lm", "janus", ("decoder",), steps, 1e-3, 0, 8, ratio=(2.0, 3.0, 5.0))


class Losses:
    """Losses by how often they were asked for; knows what was asked."""

    def __init__(self, values):
        self.values, self.params = list(values), []

    def __call__(self, params):
        self.params.append(float(params["decoder"]["final_norm"]["scale"][0]))
        loss = self.values[len(self.params) - 1]
        return {"loss": loss, "loss_gen": loss, "sources": {"mine": loss}}


def run(directory, losses, steps=10, every=2, patience=0, **fields):
    directory.mkdir(parents=True, exist_ok=True)
    watch = HeldOutWatch(stage(steps), MetricsLog(directory), losses, every, patience, quiet=True)
    step = fields.pop("step", toy_step())
    return run_toy(directory, step, steps=steps, held_out=watch, **fields)


def logged(directory):
    records = MetricsLog(directory).read_held_out("lm")
    return [(r["step"], r["held_out"]["loss"]) for r in records]


def kept(directory):
    return finished_steps(directory / "checkpoints")


def test_they_are_computed_before_on_the_way_and_after(tmp_path):
    losses = Losses([6, 5, 4, 3])
    run(tmp_path, losses, every=4)
    assert logged(tmp_path) == [(0, 6), (4, 5), (8, 4), (10, 3)]
    # Of the parameters after so many steps: 1 + the sum of the batches.
    assert losses.params == [1, 1 + 10, 1 + 36, 1 + 55]
    assert [r["step"] for r in MetricsLog(tmp_path).read()] == list(range(1, 11))
    again = Losses([])
    run(tmp_path, again, every=4)  # done: nothing is computed again
    assert again.params == []


def test_with_every_0_they_are_computed_before_and_after(tmp_path):
    run(tmp_path, Losses([6, 5]), every=0)
    assert logged(tmp_path) == [(0, 6), (10, 5)]


def test_what_was_logged_after_the_last_checkpoint_is_computed_again(tmp_path):
    with pytest.raises(Exception, match="not finite"):
        run(tmp_path, Losses([9, 8, 7, 6, 5]), step=toy_step(fail_at=7), save_every=4)
    assert kept(tmp_path) == [4] and logged(tmp_path)[-1] == (6, 6)
    losses = Losses([3, 2, 1])
    run(tmp_path, losses, save_every=4)
    assert logged(tmp_path) == [(0, 9), (2, 8), (4, 7), (6, 3), (8, 2), (10, 1)]


def test_a_run_that_ended_before_its_first_checkpoint_has_one_first_loss(tmp_path):
    with pytest.raises(Exception, match="not finite"):
        run(tmp_path, Losses([9, 8]), step=toy_step(fail_at=3), save_every=4)
    run(tmp_path, Losses([7] * 6))
    assert [step for step, _ in logged(tmp_path)] == [0, 2, 4, 6, 8, 10]


def test_who_asks_to_stop_does_not_wait_for_them(tmp_path):
    asked = iter([None] * 3 + [signal.SIGTERM] * 9)
    with pytest.raises(Stopped):
        run(tmp_path, Losses([9, 8]), stop=lambda: next(asked))
    assert kept(tmp_path) == [4] and logged(tmp_path) == [(0, 9), (2, 8)]
    run(tmp_path, Losses([7, 6, 5, 4]))  # what is missing is made up for
    assert logged(tmp_path)[2:] == [(4, 7), (6, 6), (8, 5), (10, 4)]


@pytest.mark.parametrize("values", [[9, 8, 2, 4, 3, 5], [9, 8, 2, math.nan, 3, math.inf]])
def test_the_checkpoint_that_is_kept_has_the_lowest_of_them(values, tmp_path):
    keep = Keep(newest=1, best=1, best_by="held_out")
    run(tmp_path, Losses(values), save_every=2, keep=keep)
    assert kept(tmp_path) == [4, 10]  # step 4 has 2
    saved = (tmp_path / "checkpoints" / "4" / "metrics" / "metrics").read_text()
    assert json.loads(saved)["held_out"] == 2 and json.loads(saved)["loss"] > 0


def test_a_checkpoint_that_may_be_the_best_always_has_its_loss(tmp_path):
    keep = Keep(newest=9, best=1, best_by="held_out")
    run(tmp_path, Losses([9, 8, 7, 6]), every=0, save_every=4, keep=keep)
    assert [step for step, _ in logged(tmp_path)] == [0, 4, 8, 10] and kept(tmp_path) == [4, 8, 10]


# To stop early


def test_a_stage_ends_where_they_no_longer_fall(tmp_path):
    fields = dict(patience=2, save_every=10, every=1)
    with pytest.raises(
        StoppedEarly, match=r"^lm stops at step 4: .* lowest at step 2 \(7\.0000\)$"
    ):
        run(tmp_path, Losses([9, 8, 7, 7, 8]), **fields)
    assert kept(tmp_path) == [4]  # what was trained is saved
    # The same command finds it ended, and computes nothing.
    with pytest.raises(StoppedEarly, match="stops at step 4") as error:
        run(tmp_path, Losses([]), step=lambda *_: pytest.fail("a step"), **fields)
    assert (error.value.best, error.value.step) == (2, 4)
    # With more patience it goes on.
    with pytest.raises(StoppedEarly, match="stops at step 5"):
        run(tmp_path, Losses([8]), **fields | {"patience": 3})
    run(tmp_path, Losses([8] * 5), **fields | {"patience": 0})
    assert kept(tmp_path)[-1] == 10


def test_what_is_no_better_at_the_end_ends_nothing(tmp_path):
    run(tmp_path, Losses([9, 9, 9]), patience=2, every=5)
    assert kept(tmp_path)[-1] == 10


# Where they are seen


def records(directory):
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


def test_the_report_has_before_best_and_after(tmp_path):
    run(tmp_path, Losses([9, 8, 2, 4, 3, 5]))
    text = write_report(tmp_path).read_text()
    assert "| lm | step 0 | best, step 4 | last, step 10 | change |" in text
    assert "| generation | 9.0000 | 2.0000 | 5.0000 | -4.0000 |" in text
    assert "| source mine | 9.0000 | 2.0000 | 5.0000 | -4.0000 |" in text
    assert (tmp_path / "report_held_out.png").stat().st_size > 1000
    assert "understanding |" not in text


@pytest.mark.parametrize(
    "broken",
    [
        {"held_out": 3},
        {"held_out": {}},
        {"held_out": {"loss": "x"}},
        {"held_out": {"loss": 1, "sources": [1]}},
        {"held_out": {"loss": 1, "loss_gen": None, "sources": {"a|b\x1b": "x", "mine": 2}}},
    ],
    ids=str,
)
def test_a_damaged_line_is_left_out_of_the_report(broken, tmp_path, capsys):
    run(tmp_path, Losses([9, 8]), every=0)
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"stage": "lm", "step": 3, **broken}) + "\n" + path.read_text())
    text = write_report(tmp_path).read_text()
    assert "## Held-out data" in text and "\x1b" not in text
    assert capsys.readouterr().err.count("\n") <= 1
    assert [r["step"] for r in MetricsLog(tmp_path).read()] == list(range(1, 11))
