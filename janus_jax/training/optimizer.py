"""AdamW with a clipped gradient, and a rate that is constant after a linear warm-up, or falls as a cosine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from janus_jax.training.optimizer_options import optimizer_options
from janus_jax.training.stages import Stage


def learning_rate(stage: Stage) -> optax.Schedule:
    """Linear warm-up, then constant (Janus-Pro, Table 2), or with `schedule="cosine"` half a cosine.

    The cosine is at the full rate in the last step of the warm-up (or in the first step, where there is none),
    and at `final_share` of it in the last step of the stage.
    """
    options = optimizer_options(stage.options)
    peak, warmup = stage.learning_rate, warmup_steps(stage)
    if options.schedule == "cosine":
        start = max(warmup - 1, 0)
        fall = optax.cosine_decay_schedule(
            peak, max(stage.steps - 1 - start, 1), options.final_share
        )
        return optax.join_schedules([_rise(peak, warmup), fall], [start])
    return _rise(peak, warmup)


def warmup_steps(stage: Stage) -> int:
    """Steps of the warm-up: as many as the stage says, or a share of its steps, at least one."""
    share = optimizer_options(stage.options).warmup_share
    return max(round(share * stage.steps), 1) if share else stage.warmup_steps


def _rise(peak: float, warmup: int) -> optax.Schedule:
    if warmup == 0:
        return optax.constant_schedule(peak)
    # Step 0 already moves: the first of n warm-up steps runs at 1/n of the rate.
    return optax.warmup_constant_schedule(peak / warmup, peak, max(warmup - 1, 1))


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
