"""Which step of a training run was the best: the one whose saved metrics have the lowest loss."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from janus_jax.checkpoints.model_dir import CHECKPOINTS, PARAMS, find_steps
from janus_jax.errors import UserError
from janus_jax.files import read_json
from janus_jax.places import checked

BEST = "best"  # in the place of the number of a step
# Names in the metrics of a step, the first one that any step of a stage has: the loss of held-out data says more
# than the mean of training.
_JUDGED_BY = ("held_out", "loss")


def best_step(run: str | Path, stage: str | None = None) -> tuple[str, int]:
    """(stage, step) with the lowest loss among the checkpoints that are there; of equals the newer one.

    With `log.keep_best` the best of all that were ever saved is among them.

    Args:
      run: directory (or gs://bucket/run) of a training run.
      stage: one of its stages; by default the last one that has a checkpoint.

    Raises:
      UserError: it is no run, has no finished checkpoint, or none with a loss.
    """
    run = checked(run, "the model")
    if not run.is_dir():
        raise UserError(f"no such directory: {run}")
    if (run / PARAMS).is_dir():
        raise UserError(f"{run} is a model, not a training run: it has no stages or steps")
    found = find_steps(run, stage)
    stage = found[0][0]
    steps = [step for name, step in found if name == stage]
    metrics = {step: _metrics(run / CHECKPOINTS / stage / str(step)) for step in steps}
    for name in _JUDGED_BY:
        losses = {step: m[name] for step, m in metrics.items() if _is_loss(m.get(name))}
        if losses:
            return stage, min(losses, key=lambda step: (losses[step], -step))
    raise UserError(
        f"{run}: no checkpoint of {stage} says its loss, so none is the best: name a step "
        f"({', '.join(map(str, sorted(steps)))})"
    )


def _metrics(path: Path) -> dict:
    """What was saved of a step beside its arrays; nothing where that is damaged."""
    with contextlib.suppress(UserError, OSError):
        return read_json(path / "metrics" / "metrics", dict)
    return {}


def _is_loss(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
