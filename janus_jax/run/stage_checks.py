"""What would stop a run hours later, said at its start, before it has a directory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax

from janus_jax.emoji.source import SceneMix
from janus_jax.errors import UserError
from janus_jax.parallel import BATCH_AXES
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import stage_sources
from janus_jax.training import Stage

# Records that are laid out to see how long they get: a few of each mix, and many where those come near
# the room there is.
FEW, MANY, NEAR = 25, 100, 0.75
# Shares of `scenes` that make a kind of record longer or shorter.
_SHARES = {
    "und": ("detailed", "describe"),
    "text": ("detailed", "describe", "drawings"),
    "gen": ("detailed",),
}
# Features of a sequence, and the field that makes room for them.
_ROOM = {
    "tokens": "tokens",
    "target_ids": "targets",
    "und_images": "und_images",
    "gen_starts": "gen_images",
}


def check_stages(experiment: Experiment, stages: Sequence[Stage]) -> None:
    """Raises UserError for a stage whose batches cannot be made, or not be put on the mesh."""
    for stage in stages:
        _check_batch(experiment, stage)
    for stage in stages:
        if stage.objective == "janus":
            _check_room(experiment, stage)


def _check_batch(experiment: Experiment, stage: Stage) -> None:
    where, mesh = f"config.stages.{stage.name}.batch_size", experiment.mesh
    shards, processes = math.prod(mesh.shape[a] for a in BATCH_AXES), jax.process_count()
    if shards % processes:
        raise UserError(
            f"config.mesh: data x fsdp is {shards}, which {processes} processes cannot share evenly; "
            "each reads its own part of a batch"
        )
    if stage.batch_size % shards:
        raise UserError(
            f"{where}: {stage.batch_size} rows do not divide over the {shards} parts of the mesh "
            f"(data x fsdp); take a multiple of {shards}, or another config.mesh"
        )


def _check_room(experiment: Experiment, stage: Stage) -> None:
    row = experiment.config.data.row
    for kind, weight in zip(("und", "text", "gen"), stage.ratio, strict=True):
        longest = (
            longest_record(experiment, stage, kind, FEW) if weight else dict.fromkeys(_ROOM, 0)
        )
        if any(longest[f] > NEAR * row[_ROOM[f]] for f in ("tokens", "target_ids")):
            longest = longest_record(experiment, stage, kind, MANY)
        for feature, field in _ROOM.items():
            if longest[feature] > row[field]:
                raise UserError(
                    f"config.data.row.{field}: {row[field]} is too few for {stage.name}, whose "
                    f"longest sequence ({kind}) has {longest[feature]} of them or more"
                )


def longest_record(experiment: Experiment, stage: Stage, kind: str, samples: int) -> dict[str, int]:
    """The largest size of each feature in a sample of a kind of record.

    What is rare in the mixture is looked at alone: every share of `scenes` wholly there, and not at all.
    """
    longest = dict.fromkeys(_ROOM, 0)
    for mix in _extremes(SceneMix(**stage.scenes), kind):
        source = stage_sources(experiment, stage, seed=0, mix=mix, blank=True)[kind]
        for record in map(source.__getitem__, range(samples)):
            for feature in _ROOM:
                longest[feature] = max(longest[feature], len(record[feature]))
    return longest


def _extremes(mix: SceneMix, kind: str) -> list[SceneMix]:
    options = [mix]
    for field in _SHARES[kind] if kind != "text" or mix.chat else ():
        share = getattr(mix, field)
        ends = [*([0.0] if share < 1 else []), *([1.0] if share > 0 else [])]
        options = [dataclasses.replace(o, **{field: end}) for o in options for end in ends]
    return options
