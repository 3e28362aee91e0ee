"""Codes that were computed beforehand must be those of the image tokenizer of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from janus_jax.checkpoints import tokenizer_mark
from janus_jax.errors import UserError
from janus_jax.models import Params
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import open_source
from janus_jax.training import Stage


def check_codes(experiment: Experiment, stages: Sequence[Stage], initial: Params | None) -> None:
    """Compares sources that know which tokenizer made their codes with the model that a run starts from.

    Args:
      experiment: of the run.
      stages: that will run.
      initial: the parameters of `init_from`, on the host; None where nothing starts from them.

    Raises:
      UserError: a source has codes of another tokenizer.
    """
    if initial is None:
        return
    mark = ""
    for stage in stages:
        for spec in stage.sources:
            made_by = getattr(_open(stage, spec), "tokenizer", "") if spec.weight > 0 else ""
            if not made_by:
                continue
            mark = mark or tokenizer_mark(experiment.janus_config.vq, initial["vq"])
            if made_by != mark:
                raise UserError(
                    f"config.stages.{stage.name}.sources.{spec.label}: its codes were made by another image "
                    f"tokenizer than that of {experiment.config.init_from}: prepare it again with --checkpoint "
                    f"{experiment.config.init_from}"
                )


def _open(stage: Stage, spec: Any) -> Any:
    return open_source(stage, spec, 0) if spec.task == "gen" else None
