"""AdamW with a clipped gradient, and a constant rate after a linear warm-up."""

from __future__ import annotations

import optax

from janus_jax.training.optimizer_options import optimizer_options
from janus_jax.training.stages import Stage


def learning_rate(stage: Stage) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then constant (Janus-Pro, Table 2)."""
    if stage.warmup_steps == 0:
        return optax.constant_schedule(stage.learning_rate)
    # Step 0 already moves: the first of n warm-up steps runs at 1/n of the rate.
    first = stage.learning_rate / stage.warmup_steps
    return optax.warmup_constant_schedule(
        first, stage.learning_rate, max(stage.warmup_steps - 1, 1)
    )


def make_optimizer(stage: Stage) -> optax.GradientTransformation:
    """The optimizer of one stage. It sees the trainable parameters only, so the clip does, too."""
    options = optimizer_options(stage.options)
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            learning_rate(stage),
            b1=options.b1,
            b2=options.b2,
            eps=options.eps,
            weight_decay=options.weight_decay,
        ),
    )
