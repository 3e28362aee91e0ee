"""What a fine-tune may lose without anybody meaning it, said in one line at its start."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Mapping
from typing import Any

from janus_jax.data import TASKS
from janus_jax.run.experiment import Experiment
from janus_jax.training import Stage
from janus_jax.untrusted import shown

# Task -> what a model can do by it.
_ABILITIES = {
    "und": "answers about pictures",
    "text": "answers without pictures",
    "gen": "pictures that are drawn",
}


def warn_of_forgetting(stage: Stage) -> None:
    """Says which abilities of the model that a stage starts from nothing keeps alive.

    Only where the language model changes, which all tasks share: a stage that trains adaptors alone, such as the
    first one of the paper, leaves the rest as it is.
    """
    lost = [_ABILITIES[t] for t, share in zip(TASKS, stage.ratio, strict=True) if not share]
    if not (stage.packed and lost and trains_decoder(stage)):
        return
    ratio = " : ".join(f"{share:g}" for share in stage.ratio)
    print(
        f"warning: {stage.name} trains the language model by the ratio {ratio} (understanding : text : "
        f"generation): {' and '.join(lost)} may be lost; give these a share of "
        f"config.stages.{stage.name}.ratio, and the manifest a source",
        file=sys.stderr,
    )


def warn_of_other_words(processor: Mapping[str, Any], experiment: Experiment) -> None:
    """Says where the config puts other words around a prompt than the model was trained with."""
    now = experiment.processor.config.to_dict()
    for field in ("template", "system_prompt"):
        if field in processor and processor[field] != now.get(field):
            print(
                f"warning: config.processor.{field} is {shown(now.get(field))}, and the model of config.init_from "
                f"was made with {shown(processor[field])}",
                file=sys.stderr,
            )


def trains_decoder(stage: Stage) -> bool:
    """Whether a stage trains something of the language model, itself or by an adapter."""
    return any(fnmatch.fnmatch("decoder", str(p).split("/")[0]) for p in stage.trainable)
