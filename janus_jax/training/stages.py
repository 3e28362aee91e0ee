"""What one stage of training is: what it trains, how fast, on which mixture.

Janus-Pro (arXiv 2501.17811), Table 2 and section 2.2. Stage 0 is not in it: it makes the parts that the paper
takes ready-made (image tokenizer, understanding encoder, language model), for models too small to have any.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from janus_jax.adapters import LoraOptions
from janus_jax.errors import UserError, nearest
from janus_jax.training.objectives import OBJECTIVES
from janus_jax.training.optimizer_options import optimizer_options

# What the objectives of stage 0 train on; all others, also those of one's own, on packed rows of the mixture.
OBJECTIVE_TASKS = {"vq": "pictures", "siglip": "pairs"}


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """Which data a stage reads.

    Attributes:
      name: in the registry of sources.
      task: which kind of example is taken from it: "und", "text" or "gen"; in stage 0 "pictures" or "pairs".
      weight: relative to the other sources of its task.
      options: of the source.
      label: its name in the config, for messages.
      shuffle: False reads the records in their order, again and again.
      epochs: how often it is read at most; its turns are then those of others of its task.
      held_out: share of its records that is kept from training (`data.held_out`); 0 for none.
    """

    name: str
    task: str
    weight: float = 1.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label: str = ""
    shuffle: bool = True
    epochs: float | None = None
    held_out: float = 0.0

    def __post_init__(self):
        if not isinstance(self.shuffle, bool):
            raise UserError(
                f"source {self.label or self.name}: shuffle must be true or false, not {self.shuffle!r}"
            )
        number = isinstance(self.epochs, int | float) and not isinstance(self.epochs, bool)
        if self.epochs is not None and not (number and 0 < self.epochs < math.inf):
            raise UserError(
                f"source {self.label or self.name}: epochs must be a finite number above 0, not "
                f"{self.epochs!r}"
            )
        if not (0 <= self.weight < math.inf):
            raise UserError(
                f"source {self.label or self.name}: weight must be a finite number >= 0, not "
                f"{self.weight!r}"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      name: unique in a run; also the name of its checkpoint folder.
      objective: of `objectives.OBJECTIVES`, such as "vq", "siglip" or "janus": which loss.
      trainable: patterns of parameter paths (see `param_groups`), such as "decoder"; all others are frozen.
      steps: optimizer steps; where a stage is stopped early (Janus-Pro-7B stage 2), the last one done.
      epochs: of the data, from which a run counts `steps` when it begins (`run.epochs`); 0 leaves them.
      learning_rate: after `warmup_steps` of linear warm-up; constant, unless `options` have another `schedule`.
      batch_size: rows per step, over all hosts.
      accumulate: parts of a step's rows, one after the other, whose gradients are summed before the update: the
        same step in less memory.
      ratio: understanding : text : generation, by number of sequences (of packed rows).
      ema_decay: of the average of the weights that is evaluated and handed on; 0 keeps no average.
      sources: where its examples come from; a task without a share in `ratio` needs none.
      condition_dropout: share of generation examples whose prompt is dropped (Janus paper, footnote 2).
      options: what this objective reads, e.g. {"commitment": 0.25} for "vq"; under "optimizer" what
        `OptimizerOptions` has; under "lora" what `adapters.LoraOptions` has, for an adapter, which `trainable`
        then names.
    """

    name: str
    objective: str
    trainable: tuple[str, ...]
    steps: int
    learning_rate: float
    warmup_steps: int
    batch_size: int
    ratio: tuple[float, float, float] = (0, 0, 0)
    epochs: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0
    sources: tuple[SourceSpec, ...] = ()
    condition_dropout: float = 0.1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.objective not in OBJECTIVES.names:
            raise UserError(
                f"stage {self.name}: objective must be one of {', '.join(OBJECTIVES.names)}, not "
                f"{self.objective!r}.{nearest(str(self.objective), OBJECTIVES.names)}"
            )
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(f"stage {self.name}: steps and batch_size must be at least 1")
        number = isinstance(self.epochs, int | float) and not isinstance(self.epochs, bool)
        if not number or not 0 <= self.epochs < math.inf:
            raise UserError(
                f"stage {self.name}: epochs must be a finite number >= 0, not {self.epochs!r}"
            )
        if self.epochs and not self.packed:
            raise UserError(
                f"stage {self.name}: epochs are of sequences, which {self.objective} does not train on: set steps"
            )
        count = self.accumulate
        if not isinstance(count, int) or count < 1 or self.batch_size % count:
            raise UserError(
                f"stage {self.name}: accumulate must divide batch_size ({self.batch_size}), not {count!r}"
            )
        if count > 1 and self.objective == "siglip":
            raise UserError(
                f"stage {self.name}: accumulate must be 1, as siglip compares all of a batch with each other"
            )
        ratio = self.ratio
        if len(ratio) != 3 or min(ratio) < 0 or (self.packed and sum(ratio) <= 0):
            raise UserError(f"stage {self.name}: ratio must be three weights, not all zero")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"stage {self.name}: ema_decay must be in [0, 1)")
        if not self.trainable:
            raise UserError(f"stage {self.name}: trainable names no parameters")
        try:
            optimizer = optimizer_options(self.options)
        except UserError as error:
            raise UserError(f"stage {self.name}: options.optimizer: {error}") from None
        if optimizer.warmup_share and self.warmup_steps:
            raise UserError(
                f"stage {self.name}: warmup_steps is {self.warmup_steps} and options.optimizer.warmup_share "
                f"{optimizer.warmup_share:g}: set one of them to 0"
            )
        try:
            LoraOptions.of(self.options)
        except UserError as error:
            raise UserError(f"stage {self.name}: options.{error}") from None

    @property
    def packed(self) -> bool:
        """Whether it trains on packed rows of the mixture, as all objectives do but those of stage 0."""
        return self.objective not in OBJECTIVE_TASKS


def select_stages(stages: list[Stage], only: str) -> list[Stage]:
    """All stages, or the one named `only`.

    Raises:
      UserError: no such stage.
    """
    if not only:
        return stages
    chosen = [s for s in stages if s.name == only]
    if not chosen:
        names = [s.name for s in stages]
        raise UserError(f"no stage {only!r} in this config ({', '.join(names)})")
    return chosen
