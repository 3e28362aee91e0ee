"""What a training run would read: one stage of a config, with its sources, encoder and mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from janus_jax.checkpoints.model_dir import TOKENIZER
from janus_jax.data import TASKS, PackedShape, SequenceEncoder, WeightedSource
from janus_jax.data.manifest import TASK_WORDS, read_manifest
from janus_jax.errors import UserError, nearest
from janus_jax.processing import Processor
from janus_jax.run import Experiment, build
from janus_jax.run.epochs import with_epochs
from janus_jax.run.stage_data import (
    has_codes,
    make_encoder,
    row_shape,
    stage_seed,
    stage_sources,
)
from janus_jax.training import SourceSpec, Stage
from janus_jax.training.stages import OBJECTIVE_TASKS
from janus_jax.untrusted import is_file

WORDS = {task: word for word, task in TASK_WORDS.items()}
# Side of the pictures where only lengths matter: as many positions as real ones, and next to no pixels.
SMALL = 16


@dataclasses.dataclass(frozen=True)
class Part:
    """A source that the stage reads.

    Attributes:
      label: its name.
      task: "und", "text" or "gen".
      source: its examples, with the choices that the run makes.
      spec: its entry in the config.
      share: of the sequences of the mixture.
    """

    label: str
    task: str
    source: WeightedSource
    spec: SourceSpec
    share: float

    @property
    def format(self) -> str:
        return str(self.spec.options.get("format", self.spec.name))


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one stage of a run reads.

    Attributes:
      experiment: of the run.
      stage: the stage.
      seed: of its order.
      row: room in a packed row.
      codes: pictures to generate come as codes.
      sources: all of the stage, in the run's order.
      parts: those that it reads.
      unread: names of sources that the manifest or the stage has and this stage does not read.
      checkpoint: a model directory that the user named, or "".
    """

    experiment: Experiment
    stage: Stage
    seed: int
    row: PackedShape
    codes: bool
    sources: tuple[WeightedSource, ...]
    parts: tuple[Part, ...]
    unread: tuple[str, ...]
    checkpoint: str = ""

    @property
    def too_long(self) -> str:
        return self.experiment.config.data.too_long

    @property
    def max_rejected(self) -> float:
        return self.experiment.config.data.max_rejected

    def encoder(self, small: bool = False, blank: bool = False) -> SequenceEncoder:
        """The run's encoder; what no row has room for is left out where a run would stop.

        Args:
          small: pictures of `SMALL` pixels, which changes no length.
          blank: do not open pictures.
        """
        experiment = self.experiment
        if small:
            config = dataclasses.replace(
                experiment.processor.config, und_image_size=SMALL, gen_image_size=SMALL
            )
            processor = Processor(config, experiment.processor.tokenizer)
            experiment = dataclasses.replace(experiment, processor=processor)
        too_long = "reject" if self.too_long == "error" else self.too_long
        return make_encoder(
            experiment, self.stage, self.row, self.codes, too_long=too_long, blank=blank
        )


def open_reading(config: ConfigDict, stage: str = "", checkpoint: str = "") -> Reading:
    """What a run of a config would read in one stage.

    Args:
      config: of the run; stays as it is.
      stage: its name; "" for the one that the config runs alone, or else the last one of packed rows.
      checkpoint: a model directory, whose tokenizer is taken if the config names none; or "".

    Raises:
      UserError: what would also keep the run from starting, a stage that is not there or has no sequences.
    """
    config = ConfigDict(config.copy_and_resolve_references())
    config.only_stage = _chosen(config, stage)
    if checkpoint:
        tokenizer = Path(checkpoint, TOKENIZER)
        if not is_file(tokenizer):
            raise UserError(f"--checkpoint {checkpoint}: no model directory, it has no {TOKENIZER}")
        config.tokenizer = config.tokenizer or str(tokenizer)
    # What the machine of the run must have, and this one need not.
    config.mesh.update(data=1, fsdp=-1, tensor=1)
    config.policy.attention = "dense"
    config.eval.benchmarks = ()
    experiment = with_epochs(build(config))
    found = next(s for s in experiment.stages if s.name == config.only_stage)
    seed = stage_seed(experiment, found)
    sources = tuple(stage_sources(found, seed))
    parts = _parts(found, sources)
    named = [spec.label for spec in found.sources]
    if config.data.manifest:
        named += [source.name for source in read_manifest(config.data.manifest)]
    read = {part.label for part in parts}
    return Reading(
        experiment=experiment,
        stage=found,
        seed=seed,
        row=row_shape(experiment.config, found),
        codes=has_codes(list(sources)),
        sources=sources,
        parts=parts,
        unread=tuple(name for name in dict.fromkeys(named) if name not in read),
        checkpoint=checkpoint,
    )


def _chosen(config: ConfigDict, wanted: str) -> str:
    names = [n for n in config.stage_order if n in config.stages]
    packed = [n for n in names if config.stages[n].get("objective") not in OBJECTIVE_TASKS]
    wanted = wanted or config.only_stage or (packed[-1] if packed else "")
    if not wanted:
        raise UserError(f"{config.name} has no stage that trains on sequences")
    if wanted not in names:
        raise UserError(
            f"no stage {wanted!r} in {config.name} ({', '.join(names)}).{nearest(wanted, names)}"
        )
    if wanted not in packed:
        raise UserError(
            f"{wanted} trains on pictures alone, not on sequences: choose another stage with --stage "
            f"({', '.join(packed)})"
        )
    return wanted


def _parts(stage: Stage, sources: Sequence[WeightedSource]) -> tuple[Part, ...]:
    ratio = dict(zip(TASKS, stage.ratio, strict=True))
    weights = dict.fromkeys(TASKS, 0.0)
    for source in sources:
        weights[source.task] = weights.get(source.task, 0.0) + source.weight
    parts = []
    for spec, source in zip(stage.sources, sources, strict=True):
        task = ratio.get(spec.task, 0.0) / sum(ratio.values())
        if source.weight > 0 and task > 0:
            share = task * source.weight / weights[spec.task]
            parts.append(Part(spec.label, spec.task, source, spec, share))
    return tuple(parts)
