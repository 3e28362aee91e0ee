"""A stage whose length is given in epochs: how many steps these are, counted once, when a run begins."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from janus_jax.data import TASKS, Ledger, WeightedSource, mixed_batches
from janus_jax.parallel import first_only, is_first
from janus_jax.processing import Processor
from janus_jax.run.claim import CONFIG
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import has_codes, make_encoder, row_shape, stage_seed, stage_sources
from janus_jax.training import Stage
from janus_jax.untrusted import printable

ROWS = 64  # that are packed to see how many sequences a row has
SECONDS = 30.0  # after which no more of them are: a source can be slow to read
# Side of the pictures where only lengths matter.
_SMALL = 16


def with_epochs(experiment: Experiment, run_dir: Path | None = None) -> Experiment:
    """An experiment whose stages have the steps that their epochs are, in its config, too.

    An epoch is as many sequences as all sources that a stage reads have records. By ratio and weights some of them
    are read more often than others: what that comes to is printed.

    Args:
      experiment: of the run.
      run_dir: a run that has begun with the same number of epochs keeps its steps, whatever its data has become.
    """
    if not any(stage.epochs for stage in experiment.stages):
        return experiment
    config = ConfigDict(experiment.config.copy_and_resolve_references())
    stages = []
    for stage in experiment.stages:
        if stage.epochs and config.only_stage in ("", stage.name):
            steps = first_only(lambda stage=stage: _steps(experiment, stage, run_dir))
            config.stages[stage.name].steps = steps
            stage = dataclasses.replace(stage, steps=steps)
        stages.append(stage)
    return dataclasses.replace(experiment, config=config, stages=tuple(stages))


def _steps(experiment: Experiment, stage: Stage, run_dir: Path | None) -> int:
    if (stored := _stored(run_dir, stage)) is not None:
        return stored
    sources = stage_sources(stage, stage_seed(experiment, stage))
    shares = _shares(stage, sources)
    records = sum(
        len(source.examples) for source, share in zip(sources, shares, strict=True) if share
    )
    a_row = sequences_a_row(experiment, stage, sources)
    steps = max(math.ceil(stage.epochs * records / (stage.batch_size * a_row)), 1)
    if is_first():
        total = steps * stage.batch_size * a_row
        read = ", ".join(
            f"{printable(source.label, 60)} {share * total / len(source.examples):.3g} times"
            for source, share in zip(sources, shares, strict=True)
            if share
        )
        print(
            f"{stage.name}: {stage.epochs:g} epochs of {records} records are {steps} step{'s' * (steps != 1)} of "
            f"{stage.batch_size} rows with {a_row:.3g} sequences each, whatever `steps` says; by ratio and weight "
            f"that reads {read}",
            file=sys.stderr,
        )
    return steps


def _stored(run_dir: Path | None, stage: Stage) -> int | None:
    """The steps of a run that has begun with as many epochs; None if there is none that can be read."""
    if run_dir is None:
        return None
    try:
        found: Any = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
        fields: Mapping[str, Any] = found["stages"][stage.name]
        steps = fields["steps"] if fields["epochs"] == stage.epochs else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # whoever claims the directory says what is wrong with it
    return steps if isinstance(steps, int) and steps >= 1 else None


def _shares(stage: Stage, sources: Sequence[WeightedSource]) -> list[float]:
    """Of each source, its share of the sequences; limits of epochs of single sources aside."""
    ratio = dict(zip(TASKS, stage.ratio, strict=True))
    weights = dict.fromkeys(TASKS, 0.0)
    for source in sources:
        weights[source.task] += source.weight
    whole = sum(stage.ratio)
    return [
        ratio[s.task] / whole * s.weight / weights[s.task] if s.weight else 0.0 for s in sources
    ]


def sequences_a_row(
    experiment: Experiment, stage: Stage, sources: Sequence[WeightedSource], rows: int = ROWS
) -> float:
    """Mean number of sequences in the first rows of a stage, packed as the run packs them, pictures unopened."""
    data, row = experiment.config.data, row_shape(experiment.config, stage)
    codes = has_codes(list(sources))
    small = dataclasses.replace(
        experiment.processor.config, und_image_size=_SMALL, gen_image_size=_SMALL
    )
    processor = Processor(small, experiment.processor.tokenizer)
    too_long = "reject" if data.too_long == "error" else data.too_long
    encode = make_encoder(
        dataclasses.replace(experiment, processor=processor),
        stage,
        row,
        codes,
        too_long=too_long,
        blank=True,
    )
    made = mixed_batches(
        sources,
        stage.ratio,
        encode,
        row,
        max(1, stage.batch_size // data.streams),
        stage_seed(experiment, stage),
        stream=(0, data.streams),
        threads=data.threads,
        codes=codes,
        lookahead=data.lookahead,
        ledger=Ledger(),
    )
    iterator, sequences, done = iter(made), 0, 0
    until = time.monotonic() + SECONDS
    try:
        while done < rows and (not done or time.monotonic() < until):
            segments = next(iterator)["segment_ids"]
            sequences += int(segments.max(axis=1).sum())
            done += len(segments)
    finally:
        iterator.close()
    return sequences / done
