"""A whole run: every stage in order, each from where the last one ended, resumed by running it again.

Run directory:

  config.json             the config, so that another config is refused
  janus.json, tokenizer.json   what sampling needs, next to the parameters
  stages.json             the stages in order
  checkpoints/STAGE/STEP  parameters, optimizer, data position
  metrics.jsonl           one line a step
  samples/STAGE_STEP.png  grids, prompts in the .json next to each
  scores.json             after each stage, and at the end
  report.md               everything for people
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from janus_jax import checkpoints
from janus_jax.errors import UserError
from janus_jax.models import init_params
from janus_jax.parallel import param_shardings, shard_params
from janus_jax.run.evaluate import Evaluator, write_json
from janus_jax.run.experiment import Experiment, batches, build
from janus_jax.run.report import write_report
from janus_jax.training import (
    MetricsLog,
    Stage,
    init_aux,
    make_step,
    run_stage,
    select_stages,
    start_from_codebook,
)

Params = dict[str, Any]


def train(config: ConfigDict, run_dir: Path, quiet: bool = False) -> None:
    """Runs all stages of a config (or `config.only_stage`), then scores and reports.

    Raises:
      UserError: impossible config, or `run_dir` holds another config's run.
      RunError: the training itself failed.
    """
    experiment = build(config)
    stages = select_stages(list(experiment.stages), config.only_stage)
    _check_start(experiment, run_dir, stages[0])
    _claim(run_dir, config, experiment)
    log = MetricsLog(run_dir)
    evaluator = Evaluator(experiment, run_dir)
    params = None
    for stage in stages:
        finished = _finished(experiment, run_dir, stage)
        if finished is None:
            if params is None:
                params = _starting_params(experiment, run_dir, stage)
            began = time.perf_counter()
            params = _train_stage(experiment, stage, params, run_dir, log, evaluator, quiet)
            evaluator.record_time(stage.name, time.perf_counter() - began)
        else:
            params = shard_params(finished, experiment.mesh)
        last = stage is stages[-1]
        if last or config.eval.after_stages or stage.objective == "vq":
            evaluator.score(stage, params, final=last, quiet=quiet)
    log.close()
    write_report(run_dir)


def _train_stage(
    experiment: Experiment,
    stage: Stage,
    params: Params,
    run_dir: Path,
    log: MetricsLog,
    evaluator: Evaluator,
    quiet: bool,
) -> Params:
    config = experiment.config
    if stage.objective == "siglip" and "aux" not in params:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        length = stage.options.get("text_length", 64)
        params = params | {"aux": init_aux(experiment.model, key, length)}
    if stage.name == "stage1" and any(s.objective == "vq" for s in experiment.stages):
        key = jax.random.fold_in(jax.random.key(config.seed), 2)
        params = start_from_codebook(params, key)
    iterator = batches(experiment, stage)
    try:
        params = run_stage(
            stage,
            make_step(experiment.model, stage, experiment.processor.tokenizer.pad_id),
            params,
            iterator,
            run_dir / "checkpoints" / stage.name,
            log,
            experiment.mesh,
            save_every=config.log.save_every,
            log_every=config.log.log_every,
            sample_every=config.log.sample_every,
            on_sample=lambda step, p: evaluator.sample(stage, step, p),
            quiet=quiet,
            verify=config.log.verify,
        )
    finally:
        iterator.close()  # its thread would outlive the interpreter
    return {k: v for k, v in params.items() if k != "aux"}


def _check_start(experiment: Experiment, run_dir: Path, first: Stage) -> None:
    """A single stage in the middle needs something to start from."""
    index = experiment.stages.index(first)
    if index == 0 or experiment.config.init_from:
        return
    if not any(_is_finished(run_dir, s) for s in experiment.stages[:index]):
        raise UserError(
            f"{first.name} starts from {experiment.stages[index - 1].name}, which has not finished in "
            f"{run_dir}: run the config without a stage name, or pass --config.init_from=DIR"
        )


def _starting_params(experiment: Experiment, run_dir: Path, stage: Stage) -> Params:
    """Where a stage starts: the stage before it in this run, `init_from`, or random numbers."""
    names = [s.name for s in experiment.stages]
    before = names[: names.index(stage.name)]
    for name in reversed(before):
        found = _finished(experiment, run_dir, experiment.stages[names.index(name)])
        if found is not None:
            return shard_params(found, experiment.mesh)
    config = experiment.config
    if config.init_from:
        loaded = checkpoints.load_model(config.init_from, verify=config.log.verify)
        if loaded.config != experiment.janus_config:
            raise UserError(
                f"config.init_from: {config.init_from} holds {loaded.config.name}, but this config is "
                f"for {experiment.janus_config.name}"
            )
        return shard_params(loaded.params, experiment.mesh)
    if stage.name == "stage1":
        print(
            "warning: no config.init_from, so the adaptors train on a frozen random language model",
            file=sys.stderr,
        )
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda k: init_params(experiment.model, k), key)
    shardings = param_shardings(shapes, experiment.mesh)
    if jax.device_count() == 1:
        return init_params(experiment.model, key)
    return jax.jit(lambda k: init_params(experiment.model, k), out_shardings=shardings)(key)


def _is_finished(run_dir: Path, stage: Stage) -> bool:
    return (run_dir / "checkpoints" / stage.name / str(stage.steps)).exists()


def _finished(experiment: Experiment, run_dir: Path, stage: Stage) -> Params | None:
    """The parameters a stage ended with, if it is done and they are whole."""
    directory = run_dir / "checkpoints" / stage.name
    if not _is_finished(run_dir, stage):
        return None
    with checkpoints.StageCheckpoints(directory, verify=experiment.config.log.verify) as saved:
        newest = saved.restore_newest_params()
    if newest is None or newest[0] != stage.steps:
        return None
    params = newest[1]
    return {k: v for k, v in params.items() if k != "aux"}


def _claim(run_dir: Path, config: ConfigDict, experiment: Experiment) -> None:
    """Makes the run directory, or checks that it holds this very config."""
    # Which stage to run, and whether to check what is read, is no part of what the run is.
    fields = json.loads(config.copy_and_resolve_references().to_json_best_effort())
    fields.pop("only_stage")
    fields["log"].pop("verify")
    path = run_dir / "config.json"
    if path.exists():
        advice = "the same command with another --workdir writes a new one, to copy here"
        difference = _first_difference(checkpoints.read_json(path, dict, advice), fields)
        if difference:
            raise UserError(
                f"{run_dir} holds the run of another config ({difference}); choose another --workdir, "
                "or remove it"
            )
    elif run_dir.exists() and not all(map(checkpoints.is_leftover, run_dir.iterdir())):
        raise UserError(f"{run_dir} is not empty and holds no run; choose another --workdir")
    # The config first: with it, a run killed right here can be started again.
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, fields)
    write_json(run_dir / "stages.json", [s.name for s in experiment.stages])
    checkpoints.write_card(
        run_dir,
        experiment.janus_config,
        experiment.processor.config.to_dict(),
        experiment.processor.tokenizer.to_json(),
    )


def _first_difference(old: Any, new: Any, path: str = "config") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            found = _first_difference(old.get(key), new.get(key), f"{path}.{key}")
            if found:
                return found
        return ""
    return "" if old == new else f"{path} was {old!r}, now {new!r}"
