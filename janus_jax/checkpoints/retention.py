"""Which checkpoints of a stage stay when a new one has been written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Keep:
    """What to keep; a step stays if any of the three says so.

    Attributes:
      newest: how many of the newest steps, at least 1.
      every: also the steps that are a multiple of it; 0 for none.
      best: also so many of the steps with the lowest `best_by`; 0 for none.
      best_by: a name in the metrics that are saved with a step. One without it, or whose value is not finite, is
        never among the best.
    """

    newest: int = 2
    every: int = 0
    best: int = 0
    best_by: str = "loss"

    def kept(self, steps: Sequence[int], metrics: Mapping[int, Mapping[str, Any]]) -> set[int]:
        """Those of `steps` that stay; `metrics` by step."""
        kept = set(sorted(steps)[-self.newest :])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        value = {s: metrics.get(s, {}).get(self.best_by) for s in steps}
        ranked = [s for s, v in value.items() if isinstance(v, int | float) and math.isfinite(v)]
        # Of equals the newer one: it has seen more.
        kept |= set(sorted(ranked, key=lambda s: (value[s], -s))[: self.best])
        return kept


class Policy:
    """`Keep` as Orbax asks for it; `metrics` are filled by who saves."""

    def __init__(self, keep: Keep):
        self.keep = keep
        self.metrics: dict[int, Mapping[str, Any]] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Of every checkpoint (an object with `step`) whether it stays."""
        del context
        kept = self.keep.kept([c.step for c in checkpoints], self.metrics)
        return [c.step in kept for c in checkpoints]
