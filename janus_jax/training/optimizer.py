"""AdamW as the paper sets it: betas 0.9 / 0.95, no weight decay, clip 1.0, constant rate after warm-up."""

from __future__ import annotations

import optax

from janus_jax.training.stages import Stage

CLIP_NORM = 1.0


def learning_rate(stage: Stage) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then constant (Janus-Pro, Table 2)."""
    if stage.warmup_steps == 0:
        return optax.constant_schedule(stage.learning_rate)
    # Step 0 already moves: the first of n warm-up steps runs at 1/n of the rate.
    first = stage.learning_rate / stage.warmup_steps
    return optax.linear_schedule(first, stage.learning_rate, max(stage.warmup_steps - 1, 1))


def make_optimizer(stage: Stage) -> optax.GradientTransformation:
    """The optimizer of one stage. It sees the trainable parameters only, so the clip does, too."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(learning_rate(stage), b1=0.9, b2=0.95, weight_decay=0.0),
    )
