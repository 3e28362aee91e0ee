"""The adapter that a training run has trained: its newest checkpoint, and the model that it belongs on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from janus_jax.adapters import LORA_PARAMS, has_lora, split_lora
from janus_jax.checkpoints import BEST, best_step, finished_steps, load_leaves, load_model, storage
from janus_jax.checkpoints.lazy import read_lazily
from janus_jax.checkpoints.model_dir import CHECKPOINTS, METADATA, PARAMS, find_steps
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.files import read_json
from janus_jax.interop.conversion.convert import flatten
from janus_jax.models import Params
from janus_jax.param_groups import split_params
from janus_jax.places import checked
from janus_jax.untrusted import is_file, printable, understanding

# A snapshot in the cache of the hub: what somebody else would call it.
_SNAPSHOT = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+/?")


@dataclasses.dataclass(frozen=True)
class TrainedAdapter:
    """An adapter of a run.

    Attributes:
      config: the architecture.
      params: the leaves of the adapter, as the run keeps them.
      stage, step: whose checkpoint it is of.
      base: what it belongs on: a directory or hub id; None if the run began from random numbers.
    """

    config: JanusConfig
    params: Params
    stage: str
    step: int
    base: str | None


def trained_adapter(
    run: str | Path, step: int | str | None = None, stage: str | None = None, verify: bool = True
) -> TrainedAdapter:
    """Reads the adapter of a run, and nothing else of its parameters.

    Args:
      run: the directory of a run, or gs://bucket/run.
      step: which checkpoint; by default the newest; "best": that with the lowest loss.
      stage: which stage; by default the last one that has an adapter, and such a step.
      verify: compare the files of the checkpoint with their checksums.

    Raises:
      UserError: it is no run, has no checkpoint with an adapter, or the stage trained more than the adapter.
    """
    run = checked(run, "the run")
    if not run.exists():
        raise UserError(f"no such directory: {run}")
    if not is_file(run / METADATA) or (run / PARAMS).is_dir():
        raise UserError(f"{run} is no training run: only those have an adapter to write")
    stages = _stages(run)
    with_adapter = [name for name, fields in stages.items() if fields["options"].get("lora")]
    if not with_adapter:
        raise UserError(
            f"{run} has trained no adapter: none of its stages ({printable(', '.join(stages))}) has options.lora; "
            "--to hf, official or janus_jax write the whole model"
        )
    have = [s for s in find_steps(run, stage) if s[0] in with_adapter]
    if step == BEST and have:
        stage, step = best_step(run, have[0][0])
    chosen = [s for s in have if step in (None, s[1])]
    if not chosen:
        some = ", ".join(f"{number} of {name}" for name, number in have[:8]) or "none yet"
        which = "" if step is None else f" of step {step}"
        raise UserError(f"{run} has no checkpoint{which} with an adapter; it has {some}")
    stage = chosen[0][0]
    # A damaged newest step is passed over there, with a line.
    loaded = load_model(run, step=step, stage=stage, verify=verify, lazily=True)
    step = loaded.origin["step"]
    path = run / CHECKPOINTS / stage / str(step) / PARAMS
    with understanding(path):
        shapes = storage.read_shapes(path)
        if not has_lora(shapes):
            raise UserError(f"{path} has no adapter, though the run's config.json says so")
        _check_alone(shapes, stages[stage]["trainable"], f"stage {stage} of {run}")
    adapter, _ = split_lora(read_lazily(path, shapes))
    base = base_of_stage(run, stage, stages)
    return TrainedAdapter(loaded.config, load_leaves(adapter), stage, step, base)


def _stages(run: Path) -> dict[str, dict[str, Any]]:
    """The stages of a run's config, in order."""
    path = run / "config.json"
    config = read_json(path, dict, "put it back from a copy")
    with understanding(path):
        fields = {name: config["stages"][name] for name in config["stage_order"]}
        return {
            name: {"options": dict(stage["options"]), "trainable": list(stage["trainable"])}
            for name, stage in fields.items()
        }


def _check_alone(shapes: Params, trainable: list[str], where: str) -> None:
    """Raises UserError if more than the adapter was trained, which the files of an adapter cannot hold."""
    trained, _ = split_params(shapes, trainable)
    _, more = split_params(trained, LORA_PARAMS)
    if paths := list(flatten(more)):
        raise UserError(
            f"{where} trained {len(paths)} parameters beside the adapter, such as {paths[0]}, and the files of an "
            "adapter cannot hold them: --to hf, official or janus_jax write the whole model"
        )


def base_of_stage(run: Path, stage: str, names: Iterable[str]) -> str | None:
    """What a stage of a run started from: the end of the stage before it, or `init_from`.

    Args:
      run: its directory.
      stage: which one.
      names: of its stages, in order.
    """
    names = list(names)
    for earlier in reversed(names[: names.index(stage)]):
        directory = run / CHECKPOINTS / earlier
        if steps := finished_steps(directory):
            return str(directory / str(steps[-1]))
    init = read_json(run / "config.json", dict).get("init_from")
    if not isinstance(init, str) or not init:
        return None
    return _origin(init)


def _origin(directory: str) -> str:
    """What a converted model was made of: PEFT cannot load ours. Others are what they are."""
    path = Path(directory)
    if (path / PARAMS).is_dir() and is_file(path / METADATA):
        origin = read_json(path / METADATA, dict).get("origin")
        origin = origin if isinstance(origin, dict) else {}
        source = origin.get("from")
        if (
            isinstance(source, str)
            and origin.get("format") != "janus_jax"
            and "adapter" not in origin
        ):
            hub = _SNAPSHOT.fullmatch(source)
            return f"{hub[1]}/{hub[2]}" if hub else source
    return directory
