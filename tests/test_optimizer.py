"""The optimizer's options and its schedule, for any numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.errors import UserError
from janus_jax.training import Stage, learning_rate, make_optimizer
from janus_jax.training.optimizer_options import OptimizerOptions, optimizer_options
from janus_jax.training.state import ema_decay


def stage(**fields):
    values = dict(trainable=("decoder",), steps=10, learning_rate=1e-3, warmup_steps=0)
    return Stage("test", "siglip", batch_size=4, **{**values, **fields})


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-7, 10.0), st.integers(0, 10_000), st.integers(0, 100_000))
def test_the_rate_rises_in_equal_parts_and_stays(peak, warmup, step):
    rate = learning_rate(stage(learning_rate=peak, warmup_steps=warmup))
    wanted = peak * min(1.0, (step + 1) / max(warmup, 1))
    # The first steps of a long warm-up are differences from the peak, in float32.
    assert float(rate(step)) == pytest.approx(wanted, rel=1e-6, abs=2e-7 * peak)
    assert float(rate(step)) <= float(rate(step + 1)) * (1 + 1e-6)
    assert float(rate(max(warmup - 1, 0))) == pytest.approx(peak, rel=1e-6)


def cosine(**fields):
    options = {k: fields.pop(k) for k in ("final_share", "warmup_share") if k in fields}
    return stage(**fields, options={"optimizer": {"schedule": "cosine", **options}})


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 5000), st.integers(0, 400), st.floats(0, 1), st.floats(1e-6, 1.0))
def test_a_cosine_falls_from_the_end_of_the_warm_up_to_the_last_step(steps, warmup, share, peak):
    warmup = min(warmup, steps - 1)
    made = cosine(steps=steps, warmup_steps=warmup, final_share=share, learning_rate=peak)
    first = max(warmup - 1, 0)
    rates = np.array([float(learning_rate(made)(s)) for s in {0, first, steps // 2, steps - 1}])
    assert (rates <= peak * (1 + 1e-6)).all()
    for step in (0, first, (first + steps) // 2, steps - 1):
        part = (step - first) / (steps - 1 - first)
        falling = share + (1 - share) * 0.5 * (1 + np.cos(np.pi * part))
        wanted = peak * ((step + 1) / warmup if step < first else falling)
        assert float(learning_rate(made)(step)) == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_the_last_rate_of_a_cosine_is_its_share():
    assert float(learning_rate(cosine(steps=50))(49)) == pytest.approx(1e-4)
    assert float(learning_rate(cosine(steps=50, final_share=0.0))(49)) == pytest.approx(0, abs=1e-9)
    assert float(learning_rate(cosine(steps=1))(0)) == pytest.approx(1e-3)


@pytest.mark.parametrize(("share", "steps", "warmup"), [(0.03, 1000, 30), (0.03, 10, 1), (1, 7, 7)])
def test_a_warm_up_may_be_a_share_of_the_steps(share, steps, warmup):
    one = stage(steps=steps, options={"optimizer": {"warmup_share": share}})
    other = stage(steps=steps, warmup_steps=warmup)
    for step in range(0, steps, max(steps // 50, 1)):
        assert float(learning_rate(one)(step)) == float(learning_rate(other)(step))


def test_a_warm_up_is_given_once():
    with pytest.raises(UserError, match=r"warmup_steps is 5 and .*warmup_share 0\.1: set one") as e:
        stage(warmup_steps=5, options={"optimizer": {"warmup_share": 0.1}})
    assert "\n" not in str(e.value)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, 0.9999), st.integers(0, 10**6))
def test_the_average_forgets_its_start(decay, step):
    found = float(ema_decay(stage(ema_decay=decay), jnp.int32(step)))
    assert found == pytest.approx(min(decay, (1 + step) / (10 + step)), rel=1e-5)


def updates_of(options, grads, params):
    optimizer = make_optimizer(stage(learning_rate=0.1, options=options))
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
    return np.asarray(updates)


def test_a_stage_may_set_the_numbers_of_adamw():
    params, grads = jnp.array([2.0, -1.0]), [jnp.array([30.0, 40.0]), jnp.array([0.3, -0.1])]
    numbers = dict(b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.1, clip_norm=5.0)
    found = updates_of({"optimizer": numbers}, grads, params)
    first, second = np.zeros(2), np.zeros(2)
    for count, grad in enumerate(np.array(g) / max(np.linalg.norm(g) / 5, 1) for g in grads):
        first = 0.8 * first + 0.2 * grad
        second = 0.99 * second + 0.01 * grad**2
        root = np.sqrt(second / (1 - 0.99 ** (count + 1))) + 1e-3
        wanted = -0.1 * (first / (1 - 0.8 ** (count + 1)) / root + 0.1 * np.asarray(params))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for name in numbers:  # each of them is used
        one = updates_of({"optimizer": {name: numbers[name]}}, grads, params)
        assert np.abs(one - updates_of({}, grads, params)).max() > 1e-6, name


def test_without_options_they_are_the_papers():
    assert optimizer_options({}) == OptimizerOptions(0.9, 0.95, 1e-8, 0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta2": 0.9}, r"no option 'beta2'.*b1, b2"),
        ({"weight_decai": 0.1}, "Did you mean 'weight_decay'"),
        ({"b1": 1.0}, r"b1 must be a finite number in \[0, 1\)"),
        ({"b2": -0.1}, "b2"),
        ({"eps": 0.0}, "eps must be a finite number > 0"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"clip_norm": float("inf")}, "clip_norm"),
        ({"b1": "0.9"}, "b1"),
        ({"b1": True}, "b1"),
        ({"schedule": "cosin"}, "schedule must be one of constant, cosine.*Did you mean 'cosine'"),
        ({"final_share": 1.5}, "final_share must be a number from 0 to 1"),
        ({"warmup_share": float("nan")}, "warmup_share"),
        ({"warmup_share": "0.1"}, "warmup_share"),
    ],
)
def test_impossible_numbers_are_user_errors(options, message):
    with pytest.raises(UserError, match=f"stage test: options.optimizer: .*{message}"):
        stage(options={"optimizer": options})
