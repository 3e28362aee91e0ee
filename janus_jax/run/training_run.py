"""A whole run: every stage in order, each from where the last one ended, resumed by running it again.

Run directory, or bucket:

  config.json             the config, so that another config is refused
  janus.json, tokenizer.json   what sampling needs, next to the parameters
  stages.json             the stages in order
  changes.jsonl           fields of the config that were changed later
  checkpoints/STAGE/STEP  parameters, optimizer, data position
  metrics.jsonl           one line a step
  rejected.jsonl          records of the data that were left out, and why
  profile/STAGE           traces of the steps that `config.profile` asked for
  samples/STAGE_STEP.png  grids, prompts in the .json next to each; answers in STAGE_STEP_answers.json
  scores.json             after each stage, and at the end
  adapter/STAGE           the adapter of a stage that trained one, for PEFT
  report.md               everything for people
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from janus_jax import checkpoints, gcs
from janus_jax.adapters import split_lora
from janus_jax.checkpoints import Keep
from janus_jax.errors import UserError
from janus_jax.evaluation import DRAW, RECONSTRUCT
from janus_jax.models import Params
from janus_jax.parallel import (
    first_only,
    is_first,
    shard_params,
    stop_together,
)
from janus_jax.param_groups import merge_params
from janus_jax.run.adapter_export import export_adapter
from janus_jax.run.claim import (
    Change,
    check_allowed,
    differences,
    init_or_verify_run_dir,
    jsonable,
    outdates_scores,
    progress,
)
from janus_jax.run.codes_check import check_codes
from janus_jax.run.epochs import with_epochs
from janus_jax.run.experiment import Experiment, build
from janus_jax.run.files import remove_leftovers
from janus_jax.run.held_out import HeldOutLoss, said
from janus_jax.run.manifest_config import with_manifest
from janus_jax.run.place import RunPlace, check_shared, run_place
from janus_jax.run.report import write_report
from janus_jax.run.scores import ScoreStore
from janus_jax.run.scoring import Evaluator, abilities, scored_after
from janus_jax.run.shared_log import SharedLog
from janus_jax.run.stage_checks import check_stages
from janus_jax.run.stage_data import batches
from janus_jax.run.starting import (
    check_architecture,
    check_start,
    check_used,
    finished_params,
    has_steps,
    initial_params,
    is_finished,
    starting_params,
)
from janus_jax.run.watch_list import read_given
from janus_jax.signals import StopSignals
from janus_jax.training import (
    HeldOutWatch,
    Meter,
    Profiler,
    Stage,
    StoppedEarly,
    add_params,
    check_trainable,
    handed_on,
    make_step,
    profiled_steps,
    run_stage,
    select_stages,
    start_from_codebook,
)
from janus_jax.training.metrics import HELD_OUT
from janus_jax.training.state import with_dtypes


def train(
    config: ConfigDict,
    run_dir: str | Path,
    quiet: bool = False,
    allow_change: tuple[str, ...] = (),
    signals: StopSignals | None = None,
) -> None:
    """Runs all stages of a config (or `config.only_stage`), then scores and reports.

    Args:
      config: of the run.
      run_dir: where everything goes, a directory or gs://bucket/run; held against other runs until the end.
      quiet: no progress bars.
      allow_change: fields that may differ from the run's config from now on, though they change its
        result, e.g. ("stages.stage2.learning_rate",).
      signals: what asks to stop; None leaves the process's signals alone.

    Raises:
      UserError: impossible config, `run_dir` holds another config's run, or is in use.
      RunError: the training itself failed.
      Stopped: asked to by a signal, after a save.
    """
    config = with_manifest(config)
    _check_same(config, run_dir)
    experiment = build(config)
    with run_place(run_dir) as place:
        _train(experiment, place, quiet, allow_change, signals)


def _train(
    experiment: Experiment,
    place: RunPlace,
    quiet: bool,
    allow_change: tuple[str, ...],
    signals: StopSignals | None,
) -> None:
    run_dir = place.address
    experiment = with_epochs(experiment, run_dir)
    config = experiment.config
    stages = select_stages(list(experiment.stages), config.only_stage)
    first_only(lambda: check_start(experiment, run_dir, stages[0]))
    check_allowed(allow_change, config)
    check_trainable(experiment.model, stages)
    check_architecture(experiment, run_dir, stages[0])
    given = read_given(experiment)
    check_stages(experiment, [s for s in stages if not is_finished(run_dir, s)])
    initial = initial_params(experiment, run_dir, stages[0])
    check_codes(experiment, stages, initial)
    with contextlib.ExitStack() as stack:
        first_only(lambda: stack.enter_context(place.hold()))
        if place.files == run_dir:
            check_shared(run_dir)
        stop = _stop(signals)
        # A process that is alone needs no asking: it ends at once where nothing is to save.
        stop_scoring = stop if jax.process_count() > 1 else None
        evaluator = Evaluator(experiment, place.files, stop_scoring, given)
        first_only(lambda: _prepare(place, experiment, stages, allow_change))
        if is_first():
            print(_setup(experiment), file=sys.stderr)
        if (idle := jax.device_count() - experiment.mesh.size) and is_first():
            print(
                f"warning: config.mesh leaves {idle} of {jax.device_count()} devices idle; with one axis at -1, "
                "such as --config.mesh.fsdp=-1, all are used",
                file=sys.stderr,
            )
        log = SharedLog(place.files)
        stack.callback(log.close)
        run = _Run(experiment, place, log, evaluator, quiet or not is_first(), signals, stop)
        for stage in stages:
            try:
                run.stage(stage, initial, last=stage is stages[-1])
            except StoppedEarly as early:
                kept = _say_early(early, place)
                export_adapter(place, stage, again=True, step=early.best if kept else None)
                break
            initial = None  # it may be tens of gigabytes
        first_only(lambda: str(write_report(place.files)))


def _check_same(config: ConfigDict, run_dir: str | Path) -> None:
    """Raises UserError in a process that was started with another config, or bucket, than the first one."""
    mine = jsonable(config) | {"only_stage": config.only_stage}
    mine["workdir"] = str(run_dir) if gcs.is_gcs(run_dir) else "a directory"
    if different := differences(first_only(lambda: mine), mine):
        raise UserError(
            f"process {jax.process_index()} must have the same config as process 0, whose "
            f"{different[0]} here"
        )


def _prepare(
    place: RunPlace, experiment: Experiment, stages: list[Stage], allow: tuple[str, ...]
) -> None:
    """Makes a locked directory that of this run; what a change of the config outdates is scored again."""
    files = place.files
    remove_leftovers(files)
    scored = [s.name for s in stages if scored_after(experiment, s, last=s is stages[-1])]
    scores = any(b.scored for b in experiment.benchmarks)

    def forget(changes: list[Change]) -> None:
        check_used(experiment, place.address, stages)
        paths = {c.path for c in changes}
        again = scores and outdates_scores(changes)
        ScoreStore(files).forget([n for n in scored if again or f"stages.{n}.steps" in paths])

    init_or_verify_run_dir(files, experiment.config, experiment, allow, forget, place.address)
    place.push()


class _Run:
    """Trains and scores one stage after the other."""

    def __init__(
        self,
        experiment: Experiment,
        place: RunPlace,
        log: SharedLog,
        evaluator: Evaluator,
        quiet: bool,
        signals: StopSignals | None,
        stop: Callable[[], signal.Signals | None],
    ):
        self._experiment, self._place, self._log = experiment, place, log
        self._run_dir = place.address
        self._evaluator, self._quiet, self._signals = evaluator, quiet, signals
        self._stop = stop
        self._params: Params | None = None  # that the last stage ended with

    def stage(self, stage: Stage, initial: Params | None, last: bool) -> None:
        """Trains a stage, from where the one before it in this process ended, and scores it."""
        finished = finished_params(self._experiment, self._run_dir, stage)
        if finished is None:
            if self._params is None or has_steps(self._run_dir, stage):
                self._params = None
                self._params = starting_params(self._experiment, self._run_dir, stage, initial)
            began = time.perf_counter()
            with self._signals.deferred() if self._signals else contextlib.nullcontext():
                self._params = self._train(stage)
            ScoreStore(self._place.files).record_time(stage.name, time.perf_counter() - began)
        else:
            self._params = shard_params(finished, self._experiment.mesh)
            if self._experiment.config.log.sample_every:
                self._evaluator.watching.complete(stage, self._params)
        export_adapter(self._place, stage, again=finished is None)
        if scored_after(self._experiment, stage, last):
            self._evaluator.score(stage, self._params, final=last, quiet=self._quiet)
        self._place.push()

    def _sampler(self, stage: Stage) -> Callable[[int, Params], None]:
        """What draws and answers after a step. Up to the newest checkpoint, what is there is of these weights."""
        # An earlier run of the same steps may have gone on with another rate, so what came later is drawn again.
        done = first_only(lambda: progress(self._run_dir, [stage.name]).get(stage.name, 0))

        def sample(step: int, params: Params) -> None:
            self._evaluator.sample(stage, step, params, keep=step <= done)
            self._place.push()

        return sample

    def _train(self, stage: Stage) -> Params:
        experiment, config = self._experiment, self._experiment.config
        params, self._params = self._params, None
        iterator = batches(experiment, stage, self._place.files)
        # What is cast is a copy: nothing else may hold the original, or both are on the device.
        params = with_dtypes(_with_extras(experiment, stage, params), stage, experiment.dtypes)
        params = _on_devices(params, experiment)
        peak = config.log.get("peak_tflops", 0.0)
        watch = self._watch(stage)
        self._evaluator.watching.say(stage, config.log.sample_every)
        best_by = "loss" if watch is None else HELD_OUT
        keep = Keep(config.log.keep, config.log.keep_every, config.log.keep_best, best_by)
        try:
            params = run_stage(
                stage,
                make_step(experiment.model, stage, experiment.processor.tokenizer.pad_id),
                params,
                iterator,
                self._run_dir / "checkpoints" / stage.name,
                self._log,
                experiment.mesh,
                save_every=config.log.save_every,
                save_minutes=config.log.save_minutes,
                keep=keep,
                log_every=config.log.log_every,
                sample_every=config.log.sample_every,
                on_sample=self._sampler(stage),
                quiet=self._quiet,
                stop=self._stop,
                stop_when_diverged=config.log.stop_when_diverged,
                stop_after_skips=config.log.stop_after_skips,
                verify=config.log.verify,
                meter=Meter(stage, experiment.model, params, experiment.mesh, peak),
                profiler=self._profiler(stage),
                before_commit=self._place.push,
                held_out=watch,
            )
        finally:
            iterator.close()  # its thread would outlive the interpreter
        if watch is not None:
            _say_best(stage, watch, self._place)
        return handed_on(stage, params)

    def _watch(self, stage: Stage) -> HeldOutWatch | None:
        """What is seen of held-out data; None where nothing is held out."""
        config = self._experiment.config
        loss = HeldOutLoss(self._experiment, stage)
        if not loss.counts:
            return None
        said(stage, loss.counts)
        every, patience = (
            config.eval.get("held_out_every", 0),
            config.log.get("stop_after_worse", 0),
        )
        return HeldOutWatch(stage, self._log, loss, every, patience, self._quiet)

    def _profiler(self, stage: Stage) -> Profiler:
        place, steps = self._place, profiled_steps(self._experiment.config.get("profile", ""))
        say = lambda line: tqdm.write(place.said(line), file=sys.stderr)
        return Profiler(steps, place.files / "profile" / stage.name, stage.name, say)


def _on_devices(params: Params, experiment: Experiment) -> Params:
    """Parameters that were read from files lie on the host until they have their dtypes; shapes stay shapes."""
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)
    return (
        params
        if any(map(is_shape, jax.tree.leaves(params)))
        else shard_params(params, experiment.mesh)
    )


def _say_best(stage: Stage, watch: HeldOutWatch, place: RunPlace) -> None:
    """One line where the last step is not the one with the lowest held-out loss."""
    if not is_first() or watch.best is None or watch.last is None or watch.best >= watch.last:
        return
    (loss, step), (last, end) = watch.best, watch.last
    saved = checkpoints.is_written(place.address / "checkpoints" / stage.name / str(step))
    way = f"sample.py --checkpoint {place.address} --step {step}" if saved else "it was not kept"
    print(
        f"{stage.name}: the held-out loss was lowest after step {step}, {loss:.4f}, and is {last:.4f} after "
        f"{end}, which is what the run hands on; {way}",
        file=sys.stderr,
    )


def _say_early(early: StoppedEarly, place: RunPlace) -> bool:
    """Returns whether the best step has a checkpoint."""
    best = place.address / "checkpoints" / early.stage / str(early.best)
    kept = first_only(lambda: checkpoints.is_written(best))
    if is_first():
        there = f"; {best} has it" if kept else ""
        print(
            f"{early}{there}; with --config.log.stop_after_worse=0 the same command goes on",
            file=sys.stderr,
        )
    return kept


def _setup(experiment: Experiment) -> str:
    """One line of what was chosen for this machine."""
    mesh, model = experiment.mesh, experiment.model
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return (
        f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({sizes}), attention {model.attention}, remat "
        f"{model.remat}"
    )


def _stop(signals: StopSignals | None) -> Callable[[], signal.Signals | None]:
    """What the loop asks after every step: whether to stop, the same answer in every process."""
    if jax.process_count() > 1:
        return stop_together()
    return lambda: signals.requested if signals else None


def _with_extras(experiment: Experiment, stage: Stage, params: Params) -> Params:
    """What some stages add to the parameters they start from (to their shapes, where only those matter)."""
    config = experiment.config
    abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    params = add_params(experiment.model, stage, params, key)
    if "lora" in stage.options and not abstract:
        # Every process has made it for itself: as host arrays, all of them together can put it on the mesh.
        adapter, rest = split_lora(params)
        params = merge_params(rest, jax.tree.map(np.asarray, adapter))
    if _starts_from_codebook(experiment, stage):
        key = jax.random.fold_in(jax.random.key(config.seed), 2)
        params = params if abstract else start_from_codebook(params, key)
    return params


def _starts_from_codebook(experiment: Experiment, stage: Stage) -> bool:
    """Whether a stage's image-code embedding and head start from the codebook.

    `options.init_gen_embed_from_codebook` says so; without it, the first stage that learns to draw does,
    in a run that trains its own image tokenizer.
    """
    if (chosen := stage.options.get("init_gen_embed_from_codebook")) is not None:
        return bool(chosen)
    drawing = [s for s in experiment.stages if DRAW in abilities(s)]
    return stage in drawing[:1] and any(RECONSTRUCT in abilities(s) for s in experiment.stages)
