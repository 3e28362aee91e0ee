"""AdamW with a clipped gradient, and a constant rate after a linear warm-up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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
    adamw = optax.adamw(
        learning_rate(stage),
        b1=options.b1,
        b2=options.b2,
        eps=options.eps,
        mu_dtype=options.mu_dtype or None,
        weight_decay=options.weight_decay,
    )
    if options.nu_dtype:
        adamw = _with_second_moments_in(adamw, jnp.dtype(options.nu_dtype))
    return optax.chain(optax.clip_by_global_norm(options.clip_norm), adamw)


def _with_second_moments_in(
    optimizer: optax.GradientTransformation, dtype: jnp.dtype
) -> optax.GradientTransformation:
    """An Adam whose second moments are kept in `dtype`, and computed in that of the parameters."""
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)

    def cast(state, to):
        new = lambda x: x._replace(nu=to(x.nu)) if is_adam(x) else x
        return jax.tree.map(new, state, is_leaf=is_adam)

    def init(params):
        return cast(optimizer.init(params), lambda nu: optax.tree.cast(nu, dtype))

    def update(updates, state, params=None):
        full = lambda nu: jax.tree.map(lambda x, like: x.astype(like.dtype), nu, updates)
        updates, state = optimizer.update(updates, cast(state, full), params)
        return updates, cast(state, lambda nu: optax.tree.cast(nu, dtype))

    return optax.GradientTransformation(init, update)
