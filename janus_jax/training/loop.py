"""The loop of one stage: batches in, checkpoints and metrics out, resumed where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from janus_jax.checkpoints import StageCheckpoints
from janus_jax.parallel import global_batch, param_shardings, state_shardings
from janus_jax.training.metrics import MetricsLog, check_finite, progress_bar, set_losses
from janus_jax.training.stages import Params, Stage
from janus_jax.training.step import StepFn, TrainState, evaluated_params, init_state

SampleFn = Callable[[int, Params], None]


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
    log_every: int = 10,
    sample_every: int = 0,
    on_sample: SampleFn | None = None,
    quiet: bool = False,
    verify: bool = True,
) -> Params:
    """Trains one stage, from its newest checkpoint if it has one.

    Args:
      stage: what to train.
      step_fn: from `make_step`.
      params: full tree that the stage starts from, sharded over `mesh`.
      batches: a Grain iterator of host batches (numpy); its position is saved and restored.
      directory: of this stage's checkpoints.
      log: of the run.
      save_every: steps between checkpoints; the last step is always saved.
      log_every: steps between fetches of the metrics (every step is recorded).
      sample_every: steps between calls of `on_sample(step, params)`; 0 for never.
      verify: compare the checkpoint with its checksums before going on from it.

    Returns:
      The full tree to evaluate and to hand to the next stage: the averaged weights where the stage
      keeps an average.

    Raises:
      RunError: a loss or gradient is not finite; earlier checkpoints are intact.
      UserError: the disk is full, or the checkpoints belong to another architecture.
    """
    with StageCheckpoints(directory, verify=verify) as checkpoints:
        state, frozen, params = _start(stage, params, batches, checkpoints, mesh)
        done = int(state.step)
        log.start_stage(stage.name, done)
        bar = progress_bar(stage.name, done, stage.steps, quiet)
        pending: list[tuple[int, float, float, dict[str, jax.Array]]] = []
        while done < stage.steps:
            # Order matters: fetch, step, record, check, save (after the check: a saved step is sound).
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - began
            state, metrics = step_fn(state, frozen, global_batch(batch, mesh), done)
            done += 1
            pending.append((done, began, waited, metrics))
            last = done == stage.steps
            save = last or done % save_every == 0
            sample = on_sample is not None and sample_every and done % sample_every == 0
            if save or sample or len(pending) >= log_every:
                _record(stage.name, pending, log, bar)
                pending = []
            if save:
                params = evaluated_params(state, frozen)
                checkpoints.save(done, params, _saved_state(state), batches)
            if sample:
                on_sample(done, evaluated_params(state, frozen))
        bar.close()
        return params


def _start(stage, params, batches, checkpoints, mesh) -> tuple[TrainState, Params, Params]:
    """(state, frozen, evaluated params) at the newest whole checkpoint, or at step 0."""
    state, frozen = init_state(stage, params)
    state = jax.device_put(state, state_shardings(state, mesh))
    shapes = _with_shardings(params, param_shardings(params, mesh))
    state_shapes = _with_shardings(state, state_shardings(state, mesh))
    newest = checkpoints.restore_newest(shapes, _saved_state(state_shapes), batches)
    if newest is None:
        return state, frozen, params
    _, params, saved = newest
    frozen = {k: v for k, v in params.items() if k not in stage.trainable}
    trainable = {k: v for k, v in params.items() if k in stage.trainable}
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


def _record(name: str, pending: list, log: MetricsLog, bar) -> None:
    """Fetches the metrics of the steps since the last time, checks and writes them."""
    values = jax.device_get([m for *_, m in pending])
    elapsed = time.perf_counter() - pending[0][1]
    waited = sum(w for _, _, w, _ in pending)
    rows = [{k: float(v) for k, v in sorted(m.items())} for m in values]
    rate = sum(r["tokens"] for r in rows) / elapsed
    for (done, *_), row in zip(pending, rows, strict=True):
        check_finite(name, done, row)
    records = [
        {"stage": name, "step": done, **row, "tokens_per_s": rate, "data_wait": waited / elapsed}
        for (done, *_), row in zip(pending, rows, strict=True)
    ]
    log.write(records)
    bar.update(len(pending))
    set_losses(bar, rows[-1], rate, waited / elapsed)
