"""What would stop a run hours later, reported at its start, before it has a directory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from janus_jax.data import COUNTED_BY, TASKS, PackedShape
from janus_jax.errors import UserError
from janus_jax.parallel import BATCH_AXES
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import has_codes, make_encoder, open_source, stage_sources
from janus_jax.training import SourceSpec, Stage

# Examples that are laid out to see how long they get: a few of each source, and many where those come near
# the room there is.
FEW, MANY, NEAR = 25, 100, 0.75


def check_stages(experiment: Experiment, stages: Sequence[Stage]) -> None:
    """Raises UserError for a stage whose batches cannot be made, or not be put on the mesh."""
    for stage in stages:
        check_batch(experiment, stage)
    for stage in stages:
        if stage.packed:
            _check_room(experiment, stage)


def check_batch(experiment: Experiment, stage: Stage) -> None:
    """Raises UserError for a batch that the mesh, the processes or `accumulate` do not divide."""
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
    if stage.batch_size % (shards * stage.accumulate):
        raise UserError(
            f"config.stages.{stage.name}.accumulate: {stage.batch_size} rows are {stage.batch_size // shards} "
            f"for each of the {shards} parts of the mesh (data x fsdp), which {stage.accumulate} does not divide"
        )


def _check_room(experiment: Experiment, stage: Stage) -> None:
    data = experiment.config.data
    shares = dict(zip(TASKS, stage.ratio, strict=True))
    for spec in stage.sources:
        if not spec.weight or not shares.get(spec.task):
            continue
        if data.too_long != "error":
            _check_some_fit(experiment, stage, spec)
            continue
        longest = longest_example(experiment, stage, spec, FEW)
        if any(longest[f] > NEAR * data.row[f] for f in ("tokens", "targets")):
            longest = longest_example(experiment, stage, spec, MANY)
        for field, size in longest.items():
            if size > data.row[field]:
                raise UserError(
                    f"config.data.row.{field}: {data.row[field]} is too few for {stage.name}, whose "
                    f"longest sequence ({spec.label}) has {size} of them or more"
                )


def longest_example(
    experiment: Experiment, stage: Stage, spec: SourceSpec, samples: int
) -> dict[str, int]:
    """The largest size of each field of a row in a sample of a source, and of what is rare in it."""
    source = open_source(stage, spec, seed=0)
    encode = make_encoder(experiment, stage, None, _has_codes(stage), blank=True)
    longest, rng = dict.fromkeys(COUNTED_BY, 0), np.random.default_rng(0)
    for part in source.extremes() if hasattr(source, "extremes") else [source]:
        for index in range(min(samples, len(part))):
            features = encode(part[index], rng)
            for field, feature in COUNTED_BY.items():
                longest[field] = max(longest[field], len(features[feature]))
    return longest


def _check_some_fit(experiment: Experiment, stage: Stage, spec: SourceSpec) -> None:
    source, row = open_source(stage, spec, seed=0), PackedShape(**experiment.config.data.row)
    encode = make_encoder(experiment, stage, row, _has_codes(stage), blank=True)
    indices, rng = range(min(MANY, len(source))), np.random.default_rng(0)
    if all(encode(source[i], rng) is None for i in indices):
        raise UserError(
            f"config.data.row: no row of {stage.name} has room for any of the first {len(indices)} "
            f"sequences of {spec.label}"
        )


def _has_codes(stage: Stage) -> bool:
    return has_codes(stage_sources(stage, seed=0))
