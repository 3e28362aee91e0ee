"""The numbers of AdamW, and of its rate, that a stage may set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from janus_jax.errors import UserError, nearest

MOMENT_DTYPES = ("", "float32", "bfloat16")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """AdamW as the paper sets it (Janus-Pro, section 3.1); `Stage.options["optimizer"]` may set others.

    Attributes:
      b1, b2: decay of the two moments.
      eps: added to the root of the second moment.
      weight_decay: decoupled, times the learning rate.
      mu_dtype, nu_dtype: of the first and the second moment as they are kept; "" as the parameters are.
      clip_norm: largest norm of all gradients together.
      schedule: of the rate after the warm-up: "constant", or "cosine" down to the last step of the stage.
      final_share: with "cosine", of the rate at the last step.
      warmup_share: of the stage's steps that are warm-up, instead of `Stage.warmup_steps`.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    mu_dtype: str = ""
    nu_dtype: str = ""
    schedule: str = "constant"
    final_share: float = 0.1
    warmup_share: float = 0.0

    @property
    def depends_on_steps(self) -> bool:
        """Whether the rate of a step depends on how many the stage has."""
        return self.schedule != "constant" or self.warmup_share > 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_dtype"):
                if value not in MOMENT_DTYPES:
                    known = ", ".join(MOMENT_DTYPES[1:])
                    raise UserError(f"{field.name} must be {known} or empty, not {value!r}")
                continue
            if field.name == "schedule":
                if value not in SCHEDULES:
                    known = ", ".join(SCHEDULES)
                    raise UserError(
                        f"schedule must be one of {known}, not {value!r}."
                        + nearest(str(value), SCHEDULES)
                    )
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.name.endswith("_share"):
                if not number or not 0 <= value <= 1:
                    raise UserError(f"{field.name} must be a number from 0 to 1, not {value!r}")
                continue
            low, high = (0, 1) if field.name in ("b1", "b2") else (0, math.inf)
            open_low = field.name in ("eps", "clip_norm")
            if not number or not low <= value < high or (open_low and value == low):
                wanted = "in [0, 1)" if high == 1 else "> 0" if open_low else ">= 0"
                raise UserError(f"{field.name} must be a finite number {wanted}, not {value!r}")


def optimizer_options(options: Mapping[str, Any]) -> OptimizerOptions:
    """Of the options of a stage.

    Raises:
      UserError: an unknown name or an impossible value.
    """
    values = dict(options.get("optimizer", {}))
    known = [field.name for field in dataclasses.fields(OptimizerOptions)]
    for name in values:
        if name not in known:
            raise UserError(
                f"no option {name!r} of the optimizer ({', '.join(known)}).{nearest(name, known)}"
            )
    return OptimizerOptions(**values)
