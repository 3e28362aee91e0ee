"""Where a stage of a run starts: its own checkpoint, the stage before it, a model, or random numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from janus_jax import checkpoints, gcs
from janus_jax.checkpoints.model_dir import METADATA
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.files import read_json
from janus_jax.models import Params, init_params
from janus_jax.parallel import is_first, param_shardings, shard_params
from janus_jax.run.claim import progress
from janus_jax.run.experiment import Experiment, check_init
from janus_jax.run.forgetting import trains_decoder, warn_of_forgetting, warn_of_other_words
from janus_jax.training import Stage, handed_on
from janus_jax.untrusted import is_file


def check_start(experiment: Experiment, run_dir: Path, first: Stage) -> None:
    """A single stage in the middle needs the end of the one directly before it, or a model."""
    index = experiment.stages.index(first)
    if index == 0 or has_steps(run_dir, first):
        return
    earlier = experiment.stages[:index]
    done = progress(run_dir, [s.name for s in experiment.stages])
    # More steps than the config has are a change of it, which has its own message.
    if done.get(earlier[-1].name, 0) >= earlier[-1].steps:
        return
    begun = any(s.name in done for s in earlier)
    if experiment.config.init_from and not begun:
        return
    needed = earlier[-1]
    for stage in reversed(earlier):
        if done.get(stage.name, 0) >= stage.steps:
            break
        needed = stage
        if stage.name in done:
            break
    model = "" if begun else ", or pass --config.init_from=DIR"
    raise UserError(
        f"{first.name} starts from {earlier[-1].name}, which has not finished in {run_dir} "
        f"(step {done.get(earlier[-1].name, 0)} of {earlier[-1].steps}): run "
        f"--config.only_stage={needed.name} first, or the config without a stage name{model}"
    )


def check_used(experiment: Experiment, run_dir: Path, stages: list[Stage]) -> None:
    """Refuses to train a stage from which nothing would go on, as a later one has begun without it.

    One that has steps was there before the later one: what is damaged of it is made again.
    """
    names = [s.name for s in experiment.stages]
    done = progress(run_dir, names)
    for stage in stages:
        later = [n for n in names[names.index(stage.name) + 1 :] if n in done]
        if later and stage.name not in done:
            last = experiment.stages[names.index(later[-1])]
            rest = names[names.index(last.name) + (done[last.name] >= last.steps) :]
            raise UserError(
                f"{later[0]} has begun in {run_dir} without {stage.name}, so nothing would use what "
                f"{stage.name} learns: go on with --config.only_stage={(rest or later)[0]}, or move "
                f"{run_dir / 'checkpoints' / later[0]} away to train both"
            )


def initial_params(experiment: Experiment, run_dir: Path, first: Stage) -> Params | None:
    """The parameters of `init_from`, on the host, if anything will start from them."""
    config = experiment.config
    earlier = experiment.stages[: experiment.stages.index(first)]
    if has_steps(run_dir, first):
        return None
    if not earlier:
        check_init(config)
    if not config.init_from:
        return None
    if earlier and is_finished(run_dir, earlier[-1]):
        return None
    loaded = checkpoints.load_model(config.init_from, verify=config.log.verify)
    _check_same(loaded.config, experiment)
    if is_first():
        warn_of_forgetting(first)
        warn_of_other_words(loaded.processor, experiment)
    return loaded.params


def check_architecture(experiment: Experiment, run_dir: Path, first: Stage) -> None:
    """Looks for another architecture in `init_from` before any data is read; `initial_params` reads all of it."""
    init_from = experiment.config.init_from
    if not init_from or has_steps(run_dir, first):
        return
    metadata = gcs.absolute(init_from) / METADATA
    if is_file(metadata):
        found = read_json(metadata, dict).get("config")
        if isinstance(found, dict):
            _check_same(JanusConfig.from_dict(found), experiment)


def _check_same(found: JanusConfig, experiment: Experiment) -> None:
    if found != experiment.janus_config:
        raise UserError(
            f"config.init_from: {experiment.config.init_from} holds {found.name}, but this config is "
            f"for {experiment.janus_config.name}: "
            f"{_first_difference(found.to_dict(), experiment.janus_config.to_dict())}"
        )


def _first_difference(have: Mapping[str, Any], need: Mapping[str, Any], path: str = "") -> str:
    """The first field that two architectures do not share; but for the name, if there are others."""
    fields = sorted(have.keys() | need.keys(), key=lambda field: field == "name")
    field = next(field for field in fields if have.get(field) != need.get(field))
    one, other = have.get(field), need.get(field)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return _first_difference(one, other, f"{path}{field}.")
    return f"{path}{field} is {one}, not {other}"


def starting_params(
    experiment: Experiment, run_dir: Path, stage: Stage, initial: Params | None
) -> Params:
    """Where a stage starts: its own checkpoint (then only shapes), the stage before it in this run,
    `init_from` (on the host), or random numbers."""
    key = jax.random.key(experiment.config.seed)
    shapes = jax.eval_shape(lambda k: init_params(experiment.model, k), key)
    if has_steps(run_dir, stage):
        return shapes
    index = experiment.stages.index(stage)
    if index and is_finished(run_dir, earlier := experiment.stages[index - 1]):
        found = finished_params(experiment, run_dir, earlier)
        if found is not None:
            return shard_params(found, experiment.mesh)
        raise UserError(
            f"{stage.name} starts from the end of {earlier.name}, which is damaged: run {earlier.name} "
            "again first, as the same command without a stage does"
        )
    if initial is not None:
        return initial
    if stage.packed and not trains_decoder(stage) and is_first():
        print(
            "warning: no config.init_from, so the adaptors train on a frozen random language model",
            file=sys.stderr,
        )
    if jax.device_count() == 1:
        return init_params(experiment.model, key)
    shardings = param_shardings(shapes, experiment.mesh)
    return jax.jit(lambda k: init_params(experiment.model, k), out_shardings=shardings)(key)


def has_steps(run_dir: Path, stage: Stage) -> bool:
    """Whether a stage goes on from a checkpoint of its own."""
    return stage.name in progress(run_dir, [stage.name])


def is_finished(run_dir: Path, stage: Stage) -> bool:
    return checkpoints.is_written(run_dir / "checkpoints" / stage.name / str(stage.steps))


def finished_params(experiment: Experiment, run_dir: Path, stage: Stage) -> Params | None:
    """The parameters a stage ended with, if it is done and they are whole."""
    directory = run_dir / "checkpoints" / stage.name
    if not is_finished(run_dir, stage):
        return None
    with checkpoints.StageCheckpoints(directory, verify=experiment.config.log.verify) as saved:
        newest = saved.restore_newest_params()
    if newest is None or newest[0] != stage.steps:
        return None
    return handed_on(stage, newest[1])
