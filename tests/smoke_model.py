"""The model of the smoke config as a directory to start from: random numbers, which no stage had to train."""

from pathlib import Path

import jax
import numpy as np
from smoke import tiny

from janus_jax.checkpoints import save_model
from janus_jax.models import init_params
from janus_jax.run import build


def write_smoke_model(path: Path) -> Path:
    """Writes it, and returns `path`: what `finetune:*_smoke` takes as `init_from`."""
    experiment = build(tiny())
    params = jax.jit(lambda key: init_params(experiment.model, key))(jax.random.key(0))
    processor = experiment.processor
    save_model(
        path,
        experiment.janus_config,
        processor.config.to_dict(),
        processor.tokenizer.to_json(),
        jax.tree.map(np.asarray, params),
    )
    return path
