"""Checkpoints that are written while training goes on: when they count, what goes wrong, what is kept."""

import asyncio
import errno
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import serialization
from test_loop import losses_of, run_toy, steps_saved, toy_step

from janus_jax.checkpoints import Keep, StageCheckpoints, checksums, finished_steps
from janus_jax.checkpoints import manager as manager_module
from janus_jax.errors import RunError, UserError
from janus_jax.training import Stopped
from janus_jax.training.clock import SaveClock

pytestmark = pytest.mark.heavy

STATE = {"step": np.int32(0)}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def gate(monkeypatch):
    """Background writers wait, before the checksums, until it is set."""
    gate, write = threading.Event(), checksums.write

    def wait(*args, **kwargs):
        assert gate.wait(60)
        return write(*args, **kwargs)

    monkeypatch.setattr(checksums, "write", wait)
    yield gate
    gate.set()


def save(checkpoints, step, value, **options):
    return checkpoints.save(
        step, {"w": jnp.full(50_000, value, jnp.float32)}, STATE, {"at": step}, **options
    )


def test_the_step_goes_on_while_files_are_written(tmp_path, gate):
    with StageCheckpoints(tmp_path) as checkpoints:
        assert save(checkpoints, 1, 1.0, wait=False)
        checkpoints.poll()
        assert finished_steps(tmp_path) == []  # not yet, and no half of it
        threading.Timer(0.3, gate.set).start()
        assert checkpoints.latest_step() == 1  # who reads, waits
        assert finished_steps(tmp_path) == [1]
        assert checksums.intact(tmp_path / "1")
        assert not save(checkpoints, 1, 5.0, wait=False)


def test_a_save_in_flight_is_complete_before_the_next_one_and_before_the_end(tmp_path, gate):
    with StageCheckpoints(tmp_path, keep=9) as checkpoints:
        save(checkpoints, 1, 1.0, wait=False)
        threading.Timer(0.3, gate.set).start()
        save(checkpoints, 2, 2.0, wait=False)
        assert 1 in finished_steps(tmp_path)
    assert finished_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("count", [1, 8], ids=["one-device", "eight-devices"])
def test_buffers_that_are_donated_after_a_save_do_not_change_it(tmp_path, monkeypatch, count):
    """On a CPU the host's copy may be the device's own buffer."""
    gate, write = threading.Event(), serialization.async_serialize_from_host

    async def late(*args, **kwargs):
        assert await asyncio.to_thread(gate.wait, 60)
        return await write(*args, **kwargs)

    monkeypatch.setattr(serialization, "async_serialize_from_host", late)
    step = jax.jit(lambda tree: jax.tree.map(lambda w: w * 0 - 7, tree), donate_argnums=0)
    rng = np.random.default_rng(0)
    wanted = {f"w{i}": rng.standard_normal((800, 40), np.float32) for i in range(6)}
    mesh = jax.make_mesh((count,), ("x",), devices=jax.devices()[:count])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree = jax.tree.map(lambda w: jax.device_put(w, sharding, may_alias=False), wanted)
    with StageCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, STATE, {}, wait=False)
        for _ in range(20):
            before, tree = tree, step(tree)
        jax.block_until_ready(tree)
        assert before["w0"].is_deleted()  # the step does donate
        gate.set()
        found = checkpoints.restore_params(1)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_position_in_the_data_is_that_of_the_save(tmp_path, gate):
    data = {"at": [1, {"deep": 2}]}
    with StageCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": np.ones(2)}, STATE, data, wait=False)
        data["at"][1]["deep"] = 3
        gate.set()
        found = {}
        checkpoints.restore(1, {"w": np.ones(2)}, STATE, found)
    assert found == {"at": [1, {"deep": 2}]}


# What goes wrong in the background


def failing(error):
    def fail(*args, **kwargs):
        time.sleep(0.1)
        raise error

    return fail


def poll_until(checkpoints, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        checkpoints.poll()
        time.sleep(0.01)
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("how", ["poll", "wait", "save", "close"])
def test_a_disk_that_fills_up_in_the_background_is_one_line(tmp_path, monkeypatch, capfd, how):
    checkpoints = StageCheckpoints(tmp_path)
    save(checkpoints, 1, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", failing(FULL))
        save(checkpoints, 2, 2.0, wait=False)
        with pytest.raises(UserError, match=r"no space left on the disk.*are intact$"):
            if how == "poll":
                poll_until(checkpoints)
            elif how == "save":
                save(checkpoints, 3, 3.0)
            else:
                getattr(checkpoints, how)()
    checkpoints.close()  # says it once
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    with StageCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert save(checkpoints, 2, 2.0)


def test_any_other_error_of_the_background_ends_the_run_too(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "write", failing(PermissionError(errno.EACCES, "no", "f")))
    with StageCheckpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 1.0, wait=False)
        with pytest.raises(PermissionError):
            poll_until(checkpoints)
    assert finished_steps(tmp_path) == []


def test_a_process_whose_save_failed_does_not_wait_for_the_others(tmp_path, monkeypatch):
    """They wait for its files: Orbax would let it wait for them, and nobody hear of the error."""
    entered = []

    def barrier(**arguments):
        entered.append(arguments["key"])
        if failed.is_set():
            time.sleep(3600)

    failed = threading.Event()
    multihost = manager_module.ocp.multihost
    monkeypatch.setattr(multihost, "get_barrier_sync_fn", lambda: barrier)
    checkpoints = StageCheckpoints(tmp_path)
    save(checkpoints, 1, 1.0)
    assert entered and finished_steps(tmp_path) == [1]

    def fail(*args, **kwargs):
        failed.set()
        raise FULL

    monkeypatch.setattr(checksums, "write", fail)
    save(checkpoints, 2, 2.0, wait=False)
    with pytest.raises(UserError, match="no space left"):
        poll_until(checkpoints)


# In the loop


def test_a_loop_that_saves_at_every_step_is_resumed_like_any_other(tmp_path):
    run_toy(tmp_path, toy_step(), steps=5, save_every=1)
    run_toy(tmp_path, toy_step(), steps=12, save_every=1, keep=Keep(every=4))
    assert finished_steps(tmp_path / "checkpoints") == [4, 8, 11, 12]
    run_toy(tmp_path / "whole", toy_step(), steps=12)
    assert losses_of(tmp_path) == losses_of(tmp_path / "whole")


def test_who_is_asked_to_stop_leaves_when_the_save_is_complete(tmp_path, gate):
    threading.Timer(0.5, gate.set).start()
    with pytest.raises(Stopped, match="lm step 1 is saved"):
        run_toy(tmp_path, toy_step(), stop=lambda: signal.SIGTERM)
    assert gate.is_set() and finished_steps(tmp_path / "checkpoints") == [1]


def test_the_end_of_a_stage_and_its_failure_wait_for_the_save(tmp_path, gate):
    threading.Timer(0.5, gate.set).start()
    with pytest.raises(RunError, match="go on from step 4, the last one saved"):
        run_toy(tmp_path, toy_step(fail_at=6))
    gate.clear()
    threading.Timer(0.5, gate.set).start()
    run_toy(tmp_path, toy_step(), save_every=99)
    assert finished_steps(tmp_path / "checkpoints") == [4, 10]


def test_a_failed_save_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    seen, step = [], toy_step()

    def slow(state, frozen, batch, done):
        seen.append(done)
        time.sleep(0.2)
        return step(state, frozen, batch, done)

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", failing(FULL))
        with pytest.raises(UserError, match="no space left"):
            run_toy(tmp_path, slow, save_every=2, steps=400)
    assert max(seen) < 100
    run_toy(tmp_path, toy_step())
    run_toy(tmp_path / "whole", toy_step())
    assert losses_of(tmp_path) == losses_of(tmp_path / "whole")


def test_a_finished_stage_can_be_made_longer(tmp_path):
    run_toy(tmp_path, toy_step(), steps=6)
    run_toy(tmp_path, toy_step(), steps=11)
    run_toy(tmp_path / "whole", toy_step(), steps=11)
    assert losses_of(tmp_path) == losses_of(tmp_path / "whole") and steps_saved(tmp_path) == 11


# By the clock


def test_the_clock_begins_anew_with_every_save():
    now = [0.0]
    clock = SaveClock(2.0, lambda: now[0])
    found = []
    for now[0] in (0.0, 119.0, 120.0, 200.0):
        found.append(clock.due())
    assert found == [False, False, True, True]
    clock.restart()
    assert not clock.due()
    now[0] = 320.0
    assert clock.due()
    assert not SaveClock(0.0, lambda: 1e9).due()


def test_a_stage_saves_by_the_clock_where_it_fetches_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(SaveClock, "due", lambda self: True)
    stop = iter([None] * 7 + [signal.SIGTERM])
    with pytest.raises(Stopped):  # metrics are fetched at 3 and 6
        run_toy(tmp_path, toy_step(), save_every=99, keep=Keep(9), stop=lambda: next(stop))
    assert finished_steps(tmp_path / "checkpoints") == [3, 6, 8]


# What is kept


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(), {50, 60}),
        (Keep(newest=1), {60}),
        (Keep(newest=1, every=20), {20, 40, 60}),
        (Keep(best=1), {20, 50, 60}),
        (Keep(newest=1, best=2), {20, 40, 60}),
        (Keep(newest=1, best=9), {20, 40, 50, 60}),
        (Keep(newest=1, best=1, best_by="valid"), {30, 60}),
        (Keep(newest=99), {10, 20, 30, 40, 50, 60}),
    ],
)
def test_what_stays(keep, kept):
    metrics = {
        10: {"loss": float("nan")},
        20: {"loss": 1.0},
        30: {"valid": 3.0},
        40: {"loss": 2},
        50: {"loss": 2.5},
        60: {"loss": "1"},
    }
    assert keep.kept([60, *range(10, 60, 10)], metrics) == kept


def test_of_equals_the_newer_stays():
    assert Keep(newest=1, best=1).kept([1, 2, 3], {1: {"loss": 1.0}, 2: {"loss": 1.0}}) == {2, 3}


def test_the_best_stay_over_a_restart_and_without_their_metrics_they_go(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0}
    for step, loss in losses.items():
        with StageCheckpoints(tmp_path, Keep(newest=1, best=1)) as checkpoints:
            save(checkpoints, step, 0.0, metrics={"loss": loss})
            assert checkpoints.metrics(step) == {"loss": loss}
    assert finished_steps(tmp_path) == [2, 4]
    (tmp_path / "2" / "metrics" / "metrics").write_text("{half")
    with StageCheckpoints(tmp_path, Keep(newest=1, best=1)) as checkpoints:
        save(checkpoints, 5, 0.0, metrics={"loss": 3.5})
    assert finished_steps(tmp_path) == [4, 5]


def test_a_stage_saves_the_mean_of_its_losses_since_the_last_time(tmp_path):
    run_toy(tmp_path, toy_step(), steps=8, keep=Keep(best=1))
    losses = [loss for *_, loss in losses_of(tmp_path)]
    for step in (4, 8):
        path = tmp_path / "checkpoints" / str(step) / "metrics" / "metrics"
        found = json.loads(path.read_text())
        mean = float(np.mean(losses[step - 4 : step]))
        assert found == {"loss": mean, "loss_gen": mean, "loss_und": 1.0}


# Steps that are left out


def skipping(bad):
    """The toy step, which leaves out steps as the compiled one does; the data goes on."""
    step = toy_step()

    def wrapped(state, frozen, batch, done):
        new, metrics = step(state, frozen, batch, done)
        skipped = done + 1 in bad
        if skipped:
            new = state.replace(step=state.step + 1)
            metrics |= {"loss": jnp.float32(np.nan), "loss_gen": jnp.float32(np.nan)}
        return new, metrics | {"skipped": jnp.float32(skipped)}

    return wrapped


def test_steps_that_are_left_out_are_counted_and_do_not_stop_the_run(tmp_path, capsys):
    params = run_toy(tmp_path, skipping({4, 5, 8}), stop_after_skips=3)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and err[0].startswith("warning: lm step 4: not finite in generation; left")
    assert "lm step 8" in err[1] and "3 in a row stop the run" in err[1]
    total = sum(set(range(1, 11)) - {4, 5, 8})
    np.testing.assert_array_equal(params["decoder"]["final_norm"]["scale"], np.full(4, 1 + total))
    assert [step for _, step, _ in losses_of(tmp_path)] == list(range(1, 11))
    metrics = json.loads((tmp_path / "checkpoints" / "8" / "metrics" / "metrics").read_text())
    assert np.isfinite(metrics["loss"])


def test_too_many_in_a_row_stop_the_run_with_advice(tmp_path):
    with pytest.raises(RunError) as error:
        run_toy(tmp_path, skipping({2, 5, 6, 7}), stop_after_skips=3)
    said = (
        "lm step 7: not finite in generation, as in the 2 steps before it; stopped. To go on from"
    )
    assert str(error.value).startswith(said) and "step 4, the last one saved" in str(error.value)


def test_one_is_too_many_where_nobody_says_otherwise(tmp_path):
    with pytest.raises(RunError, match=r"^lm step 5: not finite in generation; stopped\. To go"):
        run_toy(tmp_path, skipping({5}))


def test_the_row_goes_on_after_a_restart(tmp_path):
    stop = iter([None] * 4 + [signal.SIGTERM] * 9)
    with pytest.raises(Stopped):
        run_toy(tmp_path, skipping({4, 5, 6}), stop=lambda: next(stop), stop_after_skips=3)
    with pytest.raises(RunError, match=r"lm step 6: .* as in the 2 steps before"):
        run_toy(tmp_path, skipping({4, 5, 6}), stop_after_skips=3)


def test_what_was_not_left_out_must_be_finite(tmp_path):
    step = toy_step(fail_at=6)

    def claims(state, frozen, batch, done):
        new, metrics = step(state, frozen, batch, done)
        return new, metrics | {"skipped": jnp.float32(0.0)}

    with pytest.raises(RunError, match="lm step 6: not finite in understanding; stopped"):
        run_toy(tmp_path, claims, stop_after_skips=9)
