"""The loop of one stage: batches in, checkpoints and metrics out, resumed where it stopped."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from janus_jax.checkpoints import Keep, StageCheckpoints, finished_steps
from janus_jax.errors import NumbersError, RunError, UserError
from janus_jax.models import Params
from janus_jax.parallel import global_batch, param_shardings, state_shardings
from janus_jax.param_groups import split_params
from janus_jax.training.clock import SaveClock
from janus_jax.training.held_out import HeldOutWatch
from janus_jax.training.meter import Meter
from janus_jax.training.metrics import MetricsLog
from janus_jax.training.monitor import Monitor
from janus_jax.training.profiling import Profiler
from janus_jax.training.skips import Skips, mean_losses
from janus_jax.training.soundness import unsound
from janus_jax.training.stages import Stage
from janus_jax.training.state import TrainState, evaluated_params, init_state
from janus_jax.training.step import StepFn

SampleFn = Callable[[int, Params], None]
StopFn = Callable[[], signal.Signals | None]


class Stopped(Exception):
    """A stage was asked to stop, and has saved. `by` is the signal, `step` the one saved."""

    def __init__(self, stage: str, step: int, by: signal.Signals):
        super().__init__(f"stopped by {by.name}, {stage} step {step} is saved")
        self.stage, self.step, self.by = stage, step, by


class StoppedEarly(Exception):
    """A stage has ended before its last step, as the loss of held-out data no longer falls, and has saved.

    Attributes:
      stage, step: what is saved.
      best: step with the lowest loss.
    """

    def __init__(self, stage: str, step: int, best: int, loss: float):
        super().__init__(
            f"{stage} stops at step {step}: its held-out loss was lowest at step {best} ({loss:.4f})"
        )
        self.stage, self.step, self.best = stage, step, best


def run_stage(
    stage: Stage,
    step_fn: StepFn,
    params: Params,
    batches: Any,
    directory: Path,
    log: MetricsLog,
    mesh: Mesh,
    *,
    save_every: int,
    save_minutes: float = 0.0,
    keep: Keep = Keep(),  # noqa: B008, it is frozen
    log_every: int = 10,
    sample_every: int = 0,
    on_sample: SampleFn | None = None,
    quiet: bool = False,
    verify: bool = True,
    stop: StopFn = lambda: None,
    stop_when_diverged: bool = False,
    meter: Meter | None = None,
    profiler: Profiler | None = None,
    stop_after_skips: int = 1,
    before_commit: Callable[[], None] | None = None,
    held_out: HeldOutWatch | None = None,
) -> Params:
    """Trains one stage, from its newest checkpoint if it has one.

    Args:
      stage: what to train.
      step_fn: from `make_step`.
      params: full tree that the stage starts from, sharded over `mesh`; where the stage has a
        checkpoint, a tree of `jax.ShapeDtypeStruct` does.
      batches: an iterator of host batches (numpy); its position is saved and restored. It may have
        `rejected_share() -> float`.
      directory: of this stage's checkpoints.
      log: of the run.
      save_every: steps between checkpoints; the last step is always saved. Files are written while the next
        steps run.
      save_minutes: also a checkpoint when so many minutes have passed since the last one, looked at where
        metrics are fetched; 0 for none.
      keep: which checkpoints stay; their metrics are the mean losses of the steps since the one before.
      log_every: steps between fetches of the metrics (every step is recorded).
      sample_every: steps between calls of `on_sample(step, params)`, which is also called before the first step
        and at the end; 0 for never.
      verify: compare the checkpoint with its checksums before going on from it.
      stop: called after every step; a signal means to save and stop.
      stop_when_diverged: whether a loss far above its own history for many steps is an error; else it
        is a warning.
      meter: of how well the machine is used; None leaves that out of the metrics.
      profiler: of some of the steps; closed here.
      stop_after_skips: so many steps in a row that were left out, as they were not finite (metric `skipped`), are
        an error.
      before_commit: of `StageCheckpoints`.
      held_out: what is to be seen of held-out data; None for nothing. With `keep.best`, at every save, too.

    Returns:
      The full tree to evaluate and to hand to the next stage: the averaged weights where the stage
      keeps an average.

    Raises:
      RunError: a loss, gradient or parameter is not finite, or the run has diverged; what is saved is
        sound.
      Stopped: `stop` returned a signal.
      StoppedEarly: `held_out` is exhausted.
      UserError: the disk is full, or the checkpoints belong to another architecture.
    """
    with StageCheckpoints(directory, keep, verify, before_commit) as checkpoints:
        state, frozen, params = _start(stage, params, batches, checkpoints, mesh)
        done = int(state.step)
        log.start_stage(stage.name, done)
        skips = Skips(stage.name, stop_after_skips)
        rejected = getattr(batches, "rejected_share", lambda: 0.0)
        monitor = Monitor(stage, done, log, quiet, stop_when_diverged, skips, meter, rejected)
        clock, recorded = SaveClock(save_minutes), []
        draws, drawn = on_sample is not None and sample_every > 0, None
        due = lambda step: draws and (step % sample_every == 0 or step == stage.steps)

        def draw(step: int, params: Params) -> None:
            nonlocal drawn
            with monitor.doing("drawing samples"):
                on_sample(step, params)
            drawn = step

        try:
            if held_out:
                held_out.start(done, params)
            if due(done):
                draw(done, params)
            while done < stage.steps:
                if held_out and held_out.exhausted:
                    checkpoints.wait()
                    if draws and drawn != done:
                        draw(done, params)
                    loss, best = held_out.best or (math.nan, done)
                    raise StoppedEarly(stage.name, done, best, loss)
                # Order matters: fetch, step, record, check, save (after the check: a saved step is
                # sound).
                began = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - began
                if profiler:
                    profiler.before(done + 1)
                state, metrics = step_fn(state, frozen, global_batch(batch, mesh), done)
                done += 1
                monitor.add(done, began, waited, metrics, batch)
                if profiler:
                    profiler.after(metrics)
                checkpoints.poll()
                asked = stop()
                fetch = len(monitor.pending) >= log_every
                save = done == stage.steps or done % save_every == 0 or asked is not None
                save = save or (fetch and clock.due())
                # Who asks to stop waits for a save, not for this.
                look = held_out is not None and asked is None
                look = look and (held_out.due(done) or bool(save and keep.best))
                sample = due(done)
                if save or sample or fetch or look:
                    recorded += monitor.record()
                seen = held_out.look(done, evaluated_params(state, frozen)) if look else {}
                save = save or (look and held_out.exhausted)
                if save:
                    params = evaluated_params(state, frozen)
                    saved = _saved_state(state)
                    if reason := unsound(params, saved.get("trainable", {})):
                        raise NumbersError(f"{stage.name} step {done}: {reason}; not saved")
                    means, recorded = mean_losses(recorded) | seen, []
                    checkpoints.save(done, params, saved, batches, means, wait=False)
                    clock.restart()
                if asked is not None:
                    checkpoints.wait()
                    raise Stopped(stage.name, done, asked)
                if sample:
                    draw(done, evaluated_params(state, frozen))
            checkpoints.wait()
        except RunError as error:
            with contextlib.suppress(UserError):  # that is the lesser trouble
                checkpoints.wait()  # what is being written may be the newest to go on from
            if not isinstance(error, NumbersError):
                raise  # such as a worker that was killed: another rate would not help
            raise NumbersError(_advice(error, stage, directory, monitor.diverged_at)) from error
        finally:
            monitor.close()
            if profiler:
                profiler.close()
        return params


def _advice(error: NumbersError, stage: Stage, directory: Path, diverged_at: int | None) -> str:
    """The message of an error with what to change: the same command would only meet the same numbers."""
    field = f"stages.{stage.name}.learning_rate"
    saved = finished_steps(directory)
    diverged = [s for s in saved if diverged_at is not None and s >= diverged_at]
    sound = [s for s in saved if s not in diverged]
    if sound:
        since = " before that" if diverged else ""
        again = f"To go on from step {sound[-1]}, the last one saved{since},"
    else:
        again = f"To begin {stage.name} again from its first step,"
    move = " and ".join(str(directory / str(s)) for s in diverged)
    return (
        f"{error}. {again} with a lower rate (a tenth, or lower still), "
        f"{f'move {move} away and ' if diverged else ''}add --config.{field}="
        f"{stage.learning_rate / 10:.3g} --allow_change={field} to the same command"
    )


def _start(stage, params, batches, checkpoints, mesh) -> tuple[TrainState, Params, Params]:
    """(state, frozen, evaluated params) at the newest whole checkpoint, or at step 0."""
    # Only shapes: the numbers are in the checkpoint, if there is one.
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state, _ = jax.eval_shape(lambda p: init_state(stage, p), like)
    shapes = _with_shardings(like, param_shardings(like, mesh))
    state = _with_shardings(state, state_shardings(state, mesh))
    newest = checkpoints.restore_newest(shapes, _saved_state(state), batches)
    if newest is None:
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            raise UserError(
                f"{checkpoints.directory} has no checkpoint that can be used, and what the stage "
                "started from was not read: remove that directory to begin the stage again"
            )
        state, frozen = init_state(stage, params)
        return jax.device_put(state, state_shardings(state, mesh)), frozen, params
    _, params, saved = newest
    trainable, frozen = split_params(params, stage.trainable)
    fields = dict(saved)
    if stage.ema_decay:
        # The saved parameters are the average; the weights that train are part of the state.
        fields["ema"] = trainable
    else:
        fields |= {"trainable": trainable, "ema": {}}
    return state.replace(**fields), frozen, params


def _saved_state(state: TrainState) -> dict[str, Any]:
    """What the parameters of a checkpoint do not already hold."""
    saved = {"step": state.step, "opt_state": state.opt_state, "extra": state.extra}
    return saved | ({"trainable": state.trainable} if state.ema else {})


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
