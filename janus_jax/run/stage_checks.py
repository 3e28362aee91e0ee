"""What would stop a run hours later, reported at its start, before it has a directory."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import jax
import numpy as np

from janus_jax.data import COUNTED_BY, TASKS, PackedShape, Rejected, read_example, streams_of
from janus_jax.errors import UserError
from janus_jax.parallel import BATCH_AXES, is_first, process_rows
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import (
    LOOKED_AT,
    has_codes,
    make_encoder,
    open_source,
    stage_sources,
    usable,
)
from janus_jax.training import SourceSpec, Stage

# Examples that are laid out to see how long they get: a few of each source, and many where those come near
# the room there is.
FEW, MANY, NEAR = 25, LOOKED_AT, 0.75


def check_stages(experiment: Experiment, stages: Sequence[Stage]) -> None:
    """Raises UserError for a stage whose batches cannot be made, or not be put on the mesh."""
    for stage in stages:
        check_batch(experiment, stage)
    _check_streams(experiment, stages)
    for stage in stages:
        for spec in stage.sources:
            if _reads(stage, spec):
                _check_usable(stage, spec)
        if stage.packed:
            _check_room(experiment, stage)


def check_batch(experiment: Experiment, stage: Stage) -> None:
    """Raises UserError for a batch that the mesh, the processes or `accumulate` do not divide."""
    where, mesh = f"config.stages.{stage.name}.batch_size", experiment.mesh
    shards = math.prod(mesh.shape[a] for a in BATCH_AXES)
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


def _check_streams(experiment: Experiment, stages: Sequence[Stage]) -> None:
    """Refuses streams that do not divide a batch; says where processes would read more than they need."""
    streams = experiment.config.data.streams
    common = math.gcd(*(stage.batch_size for stage in stages))
    works = [n for n in range(1, common + 1) if common % n == 0]
    for stage in stages:
        if stage.batch_size % streams:
            raise UserError(
                f"config.data.streams: the {stage.batch_size} rows of {stage.name} do not divide over "
                f"{streams} streams; take one of {', '.join(map(str, works))}"
            )
    for stage in stages:
        rows = process_rows(experiment.mesh, stage.batch_size)
        read = len(streams_of(rows, streams, stage.batch_size)) * stage.batch_size // streams
        if read > len(rows) and is_first():
            own = [n for n in works if n % jax.process_count() == 0]
            better = f"; with one of {', '.join(map(str, own))} it reads no more" if own else ""
            print(
                f"warning: config.data.streams={streams} for {jax.process_count()} processes: each reads "
                f"{read} rows a step of {stage.name} and trains on {len(rows)} of them{better}",
                file=sys.stderr,
            )
            return


def _reads(stage: Stage, spec: SourceSpec) -> bool:
    """Whether a stage reads a source: it has a weight, and its task a share."""
    shares = dict(zip(TASKS, stage.ratio, strict=True))
    return spec.weight > 0 and (not stage.packed or shares.get(spec.task, 0) > 0)


def _check_usable(stage: Stage, spec: SourceSpec) -> None:
    """Raises UserError for a source that begins with bad records only."""
    source = open_source(stage, spec, seed=0)
    if next(usable(source), None) is None:
        first = read_example(source, 0)
        detail = f" ({first.detail})" if first.detail else ""
        raise UserError(
            f"config.stages.{stage.name}.sources.{spec.label}: none of the first "
            f"{min(LOOKED_AT, len(source))} records can be used; the first one: {first.reason}{detail}"
        )


def _check_room(experiment: Experiment, stage: Stage) -> None:
    data = experiment.config.data
    for spec in stage.sources:
        if not _reads(stage, spec):
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
        for index, example in usable(part):
            features = encode(example, rng) if index < samples else None
            if features is None or isinstance(features, Rejected):
                continue
            for field, feature in COUNTED_BY.items():
                longest[field] = max(longest[field], len(features[feature]))
    return longest


def _check_some_fit(experiment: Experiment, stage: Stage, spec: SourceSpec) -> None:
    source, row = open_source(stage, spec, seed=0), PackedShape(**experiment.config.data.row)
    encode = make_encoder(experiment, stage, row, _has_codes(stage), blank=True)
    rng = np.random.default_rng(0)
    if all(isinstance(encode(example, rng), Rejected) for _, example in usable(source)):
        raise UserError(
            f"config.data.row: no row of {stage.name} has room for any of the first "
            f"{min(MANY, len(source))} sequences of {spec.label}"
        )


def _has_codes(stage: Stage) -> bool:
    return has_codes(stage_sources(stage, seed=0))
