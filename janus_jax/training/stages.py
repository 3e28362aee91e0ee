"""What one stage of training is: what it trains, how fast, on which mixture.

Janus-Pro (arXiv 2501.17811), Table 2 and section 2.2. Stage 0 is not in it: it makes the parts that the paper
takes ready-made (image tokenizer, understanding encoder, language model), for models too small to have any.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from janus_jax.errors import UserError, nearest
from janus_jax.training.objectives import OBJECTIVES
from janus_jax.training.optimizer_options import optimizer_options

# The paper's freeze sets: the parameter groups that each stage trains. The embedding table of the image codes
# belongs to the generation adaptor: it starts from random numbers, so it must train from stage 1 on.
ADAPTORS = ("gen_adaptor", "gen_embed", "image_head", "und_adaptor")
TRAINABLE = {
    "vq": ("vq",),
    "siglip": ("aux", "siglip"),
    "lm": ("decoder",),
    "stage1": ADAPTORS,
    "stage2": (*ADAPTORS, "decoder"),
    "stage3": (*ADAPTORS, "decoder", "siglip"),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      name: unique in a run; also the name of its checkpoint folder.
      objective: of `objectives.OBJECTIVES`, such as "vq", "siglip" or "janus": which loss.
      trainable: patterns of parameter paths (see `groups`), such as "decoder"; all others are frozen.
      steps: optimizer steps; where a stage is stopped early (Janus-Pro-7B stage 2), the last one done.
      learning_rate: constant after `warmup_steps` of linear warm-up.
      batch_size: rows per step, over all hosts.
      ratio: understanding : text : generation, by number of sequences ("janus" only).
      ema_decay: of the average of the weights that is evaluated and handed on; 0 keeps no average.
      scenes: keyword arguments of `data.SceneMix`.
      options: what this objective reads, e.g. {"commitment": 0.25} for "vq"; and under "optimizer" what
        `OptimizerOptions` has.
    """

    name: str
    objective: str
    trainable: tuple[str, ...]
    steps: int
    learning_rate: float
    warmup_steps: int
    batch_size: int
    ratio: tuple[float, float, float] = (0, 0, 0)
    ema_decay: float = 0.0
    scenes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.objective not in OBJECTIVES.names:
            raise UserError(
                f"stage {self.name}: objective must be one of {', '.join(OBJECTIVES.names)}, not "
                f"{self.objective!r}.{nearest(str(self.objective), OBJECTIVES.names)}"
            )
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(f"stage {self.name}: steps and batch_size must be at least 1")
        ratio = self.ratio
        if len(ratio) != 3 or min(ratio) < 0 or (self.objective == "janus" and sum(ratio) <= 0):
            raise UserError(f"stage {self.name}: ratio must be three weights, not all zero")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"stage {self.name}: ema_decay must be in [0, 1)")
        if not self.trainable:
            raise UserError(f"stage {self.name}: trainable names no parameters")
        try:
            optimizer_options(self.options)
        except UserError as error:
            raise UserError(f"stage {self.name}: options.optimizer: {error}") from None


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
