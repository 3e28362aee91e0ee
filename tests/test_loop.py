"""The loop of a stage: stopping on request, what is never saved, a loss that leaves its history."""

import itertools
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.checkpoints import StageCheckpoints
from janus_jax.data.reading import worker_died
from janus_jax.errors import RunError, UserError
from janus_jax.parallel import make_mesh
from janus_jax.training import MetricsLog, Stage, Stopped, run_stage
from janus_jax.training.divergence import MANY, DivergenceWatch
from janus_jax.training.objectives import phase_starts

pytestmark = pytest.mark.heavy

ONE_DEVICE = make_mesh(devices=jax.devices()[:1])


SMALL = {"decoder": {"final_norm": {"scale": np.ones(4, np.float32)}}}


class Numbers:
    """A data source whose position can be saved."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        return {"x": np.full(2, self.next, np.float32)}

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def toy_step(fail_at=None, values=None):
    """Adds the batch to the parameter; the loss is the sum so far."""

    def step(state, frozen, batch, done):
        assert done == int(state.step)
        tree = jax.tree.map(lambda w: w + batch["x"][0], state.trainable)
        loss = jnp.sum(tree["decoder"]["final_norm"]["scale"])
        metrics = {"loss": loss, "loss_gen": loss, "tokens": jnp.float32(2.0)}
        metrics["loss_und"] = jnp.float32(math.nan if done + 1 == fail_at else 1.0)
        return state.replace(step=state.step + 1, trainable=tree), metrics

    return step


def run_toy(directory, step, steps=10, save_every=4, params=SMALL, ema_decay=0.0, **fields):
    toy = Stage(
        name="lm",
        objective="janus",
        trainable=("decoder",),
        steps=steps,
        learning_rate=1e-3,
        warmup_steps=0,
        batch_size=8,
        ratio=(2.0, 3.0, 5.0),
        ema_decay=ema_decay,
    )
    directory.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(directory)
    try:
        return run_stage(
            toy,
            step,
            params,
            Numbers(),
            directory / "checkpoints",
            log,
            ONE_DEVICE,
            save_every=save_every,
            log_every=3,
            quiet=True,
            **fields,
        )
    finally:
        log.close()


def steps_saved(directory):
    with StageCheckpoints(directory / "checkpoints") as checkpoints:
        return checkpoints.latest_step()


def losses_of(directory):
    return [(r["stage"], r["step"], r["loss"]) for r in MetricsLog(directory).read()]


def test_the_loop_records_every_step_and_saves_the_last(tmp_path):
    samples = []
    params = run_toy(
        tmp_path, toy_step(), sample_every=5, on_sample=lambda step, p: samples.append(step)
    )
    sums = [4.0 + 4 * total for total in itertools.accumulate(range(1, 11))]
    assert losses_of(tmp_path) == [("lm", i + 1, s) for i, s in enumerate(sums)]
    np.testing.assert_array_equal(params["decoder"]["final_norm"]["scale"], np.full(4, 56.0))
    assert samples == [0, 5, 10] and steps_saved(tmp_path) == 10
    record = MetricsLog(tmp_path).read()[0]
    assert record["tokens_per_s"] > 0 and 0 <= record["data_wait"] <= 1
    # Done: nothing more happens, and the result is the same.
    again = run_toy(tmp_path, lambda *a: pytest.fail("a finished stage ran"))
    np.testing.assert_array_equal(again["decoder"]["final_norm"]["scale"], np.full(4, 56.0))
    assert len(losses_of(tmp_path)) == 10


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"^lm step 7: not finite in understanding") as error:
        run_toy(tmp_path, toy_step(fail_at=7))
    assert "\n" not in str(error.value)
    assert steps_saved(tmp_path) == 4  # not 8: nothing is saved unchecked
    assert [step for _, step, _ in losses_of(tmp_path)] in ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6])
    # From there the run goes on as if nothing had happened.
    run_toy(tmp_path, toy_step())
    reference = tmp_path / "reference"
    reference.mkdir()
    run_toy(reference, toy_step())
    assert losses_of(tmp_path) == losses_of(reference)


def test_a_bad_step_that_would_be_saved_is_not(tmp_path):
    with pytest.raises(RunError, match="step 8"):
        run_toy(tmp_path, toy_step(fail_at=8))
    assert steps_saved(tmp_path) == 4


def test_checkpoints_of_another_architecture_are_refused(tmp_path):
    run_toy(tmp_path, toy_step(), steps=4)
    wider = {"decoder": {"final_norm": {"scale": np.ones(6, np.float32)}}}
    with pytest.raises(UserError, match="another architecture"):
        run_toy(tmp_path, toy_step(), steps=8, params=wider)


@pytest.mark.parametrize("at", [1, 4, 6, 10])
def test_a_stage_that_is_asked_to_stop_saves_first(at, tmp_path):
    asked = iter([None] * (at - 1) + [signal.SIGTERM] * 99)
    with pytest.raises(Stopped, match=f"stopped by SIGTERM, lm step {at} is saved"):
        run_toy(tmp_path, toy_step(), stop=lambda: next(asked))
    assert steps_saved(tmp_path) == at and len(losses_of(tmp_path)) == at
    run_toy(tmp_path, toy_step())
    reference = tmp_path / "reference"
    reference.mkdir()
    run_toy(reference, toy_step())
    assert losses_of(tmp_path) == losses_of(reference)


def blown_up(value):
    """The loss stays small while the parameters do not."""

    def step(state, frozen, batch, done):
        tree = jax.tree.map(lambda w: jnp.full_like(w, value if done >= 5 else 1), state.trainable)
        metrics = {"loss": jnp.float32(1.0), "tokens": jnp.float32(2.0)}
        return state.replace(step=state.step + 1, trainable=tree), metrics

    return step


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 4.5e29, -2e6])
def test_parameters_that_are_no_good_are_not_saved(value, tmp_path):
    with pytest.raises(RunError, match=r"^lm step 8: .*not saved") as error:
        run_toy(tmp_path, blown_up(value))
    assert steps_saved(tmp_path) == 4
    assert "go on from step 4" in str(error.value)
    run_toy(tmp_path, blown_up(1e5))  # large, but no reason to lose a run
    assert steps_saved(tmp_path) == 10


def test_averaged_weights_do_not_hide_trained_ones_that_are_no_good(tmp_path):
    def step(state, frozen, batch, done):
        tree = jax.tree.map(lambda w: jnp.full_like(w, math.nan), state.trainable)
        return state.replace(step=state.step + 1, trainable=tree), {
            "loss": jnp.float32(1.0),
            "tokens": jnp.float32(2.0),
        }

    with pytest.raises(RunError, match="parameters are not finite; not saved"):
        run_toy(tmp_path, step, ema_decay=0.9)
    assert steps_saved(tmp_path) is None


def test_what_the_advice_after_nan_names_is_there(tmp_path):
    with pytest.raises(RunError) as error:
        run_toy(tmp_path, toy_step(fail_at=7))
    field = "stages.lm.learning_rate"
    assert f"--config.{field}=0.0001 --allow_change={field}" in str(error.value)
    assert "go on from step 4, the last one saved" in str(error.value)
    with pytest.raises(RunError, match="To begin lm again from its first step, with a lower"):
        run_toy(tmp_path / "new", toy_step(fail_at=1))


def test_an_error_of_something_else_than_numbers_comes_without_that_advice(tmp_path):
    def step(*_):
        raise worker_died()

    with pytest.raises(RunError) as error:
        run_toy(tmp_path, step)
    assert str(error.value) == str(worker_died())


def exploding(at):
    """A loss that is fine until step `at`, then 1e14 for good, and finite."""

    def step(state, frozen, batch, done):
        loss = 2.0 + 0.3 * math.sin(done) if done + 1 < at else 1e14
        metrics = {"loss": jnp.float32(loss), "tokens": jnp.float32(2.0)}
        return state.replace(step=state.step + 1), metrics

    return step


@pytest.mark.parametrize("at", [2, 31])
def test_a_run_that_diverges_is_named_and_may_be_stopped(at, tmp_path, capsys):
    run_toy(tmp_path / "warn", exploding(at), steps=70)
    said = f"warning: lm: the loss is far above its own history since step {at} (1e+14"
    assert capsys.readouterr().err.count(said) == 1
    with pytest.raises(RunError, match=f"since step {at} .*allow_change=stages.lm.learning_rate"):
        run_toy(tmp_path / "stop", exploding(at), steps=70, stop_when_diverged=True)
    # What was saved since is as bad: the message says to move it away, and what is left then.
    where = {"steps": 70, "save_every": 15, "stop_when_diverged": True}
    with pytest.raises(RunError) as error:
        run_toy(tmp_path / "away", exploding(at), **where)
    spoilt = [s for s in (15, 30, 45) if at <= s < at + MANY]
    move = " and ".join(str(tmp_path / "away" / "checkpoints" / str(s)) for s in spoilt)
    left = (
        "To go on from step 30, the last one saved before that"
        if at == 31
        else "To begin lm again from its first step"
    )
    rate = "with a lower rate (a tenth, or lower still)"
    assert f"{left}, {rate}, move {move} away and add --config" in str(error.value)
    for step in spoilt:
        shutil.rmtree(tmp_path / "away" / "checkpoints" / str(step))
    run_toy(tmp_path / "away", exploding(99), **where)  # and that really works
    # A restart does not forget what was usual.
    with pytest.raises(RunError, match=f"since step {at} "):
        run_toy(tmp_path / "stop", exploding(at), steps=70, stop_when_diverged=True)


def test_a_stage_with_a_checkpoint_needs_only_the_shapes_it_started_from(tmp_path):
    shapes = jax.eval_shape(lambda: SMALL)
    with pytest.raises(UserError, match="no checkpoint that can be used"):
        run_toy(tmp_path, toy_step(), steps=4, params=shapes)
    run_toy(tmp_path, toy_step(), steps=4)
    run_toy(tmp_path, toy_step(), params=shapes)
    whole = tmp_path / "whole"
    whole.mkdir()
    run_toy(whole, toy_step())
    assert losses_of(tmp_path) == losses_of(whole)


# Divergence


def found(losses, starts=()):
    watch = DivergenceWatch(starts)
    for step, loss in enumerate(losses, 1):
        watch.add(step, loss)
    return [(d.first, d.last) for d in watch.found]


RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=2000)
HEALTHY = {
    "falling": 5.0 * np.exp(-np.arange(2000) / 300) + 0.2 * np.exp(0.3 * NOISE),
    "noisy": np.exp(0.8 * NOISE),
    "batches of two kinds": np.where(NOISE > 0.5, 4.0, 0.3) * np.exp(0.1 * NOISE),
    "warm-up that first gets worse": np.r_[np.linspace(2, 5, 60), np.linspace(5, 1, 1940)],
    "single spikes": np.where(np.arange(2000) % 100 == 99, 1e6, 1.0),
    "a spike that takes a while": np.r_[np.ones(500), 50 * np.ones(MANY - 1), np.ones(500)],
    "twice as high": np.r_[np.ones(500), 2 * np.ones(500)],
    "constant": np.ones(300),
    "a perfect fit": 1e-8 * np.exp(3 * NOISE),
    "down to a perfect fit": np.r_[np.geomspace(5, 1e-7, 1000), 1e-7 * np.exp(2 * NOISE)],
    "zero and less": np.zeros(300),
}
ILL = {
    "from the first step": (np.r_[5.0, np.full(99, 1e14)], 2),
    "later": (np.r_[HEALTHY["falling"][:1000], np.full(100, 50.0)], 1001),
    "slowly": (np.r_[np.ones(500), np.geomspace(1, 1e6, 500)], 541),
    "without a number": (np.r_[np.ones(100), np.full(50, math.inf)], 101),
    "noisily": (np.r_[2 * np.exp(0.1 * NOISE[:500]), 200 * np.exp(0.5 * NOISE[:100])], 501),
    "back to where it began": (np.r_[np.geomspace(10, 0.5, 600), np.full(50, 10.0)], 601),
}


@pytest.mark.parametrize("losses", HEALTHY.values(), ids=HEALTHY)
def test_a_normal_loss_is_no_divergence(losses):
    assert found(losses) == []


@pytest.mark.parametrize(("losses", "first"), ILL.values(), ids=ILL)
def test_a_loss_that_leaves_its_history_is_one(losses, first):
    ((began, last),) = found(losses)
    assert abs(began - first) <= 5 and last == len(losses)


def test_a_phase_of_the_image_tokenizer_begins_a_new_history():
    losses = [0.02] * 150 + [0.5] * 150 + [3.0] * 100
    starts = phase_starts("vq", {"warmup": 150, "fixed_from": 300})
    assert starts == (151, 301) and found(losses, starts) == []
    assert found(losses) == [(151, 400)]
    assert phase_starts("janus", {"warmup": 150}) == ()


def test_a_divergence_ends_when_the_loss_is_back():
    losses = [1.0] * 100 + [80.0] * 30 + [1.0] * 100 + [80.0] * 40
    assert found(losses) == [(101, 130), (231, 270)]
