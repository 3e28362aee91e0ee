"""Logits -> tokens: guidance, temperature, top-k, top-p, one random key a row."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference.checks import number, whole

_GREEDY_BELOW = 1e-30  # logits that are divided by less leave float32


class SamplingParams(NamedTuple):
    """Numbers of one call, traced: other values do not compile another program.

    Each may be an array [B, 1], a number for each row. Such a temperature may be 0 in a program that is not
    greedy: its row is greedy then.
    """

    cfg_weight: float
    temperature: float
    top_k: int
    top_p: float


class StaticSampling(NamedTuple):
    """What a compiled program contains, static.

    Attributes:
      guided: has the unconditional half of the batch.
      greedy: argmax instead of sampling.
      filtered: has top-k and top-p.
    """

    guided: bool
    greedy: bool
    filtered: bool


def make_sampling_params(
    vocab: int,
    cfg_weight: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[SamplingParams, StaticSampling]:
    """Checks the numbers of one call; `vocab` is the number of classes that are drawn from.

    Temperature 0 means greedy. Guidance 1 means the conditional logits, without the cost of the
    unconditional ones.

    Raises:
      UserError: no number, not finite, negative, or outside of the stated range.
    """
    cfg_weight, temperature = number("cfg_weight", cfg_weight), number("temperature", temperature)
    top_k = None if top_k is None else whole("top_k", top_k)
    top_p = None if top_p is None else number("top_p", top_p)
    for name, value in (("cfg_weight", cfg_weight), ("temperature", temperature)):
        if not math.isfinite(value) or value < 0:
            raise UserError(f"{name} must be a finite number >= 0, got {value}")
    if top_k is not None and not 1 <= top_k <= vocab:
        raise UserError(f"top_k must be between 1 and {vocab}, the number of codes, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")
    if temperature < _GREEDY_BELOW:
        temperature = 0.0
    greedy = temperature == 0
    filtered = not greedy and not (top_k in (None, vocab) and top_p in (None, 1))
    sampling = SamplingParams(cfg_weight, temperature, top_k or vocab, float(top_p or 1))
    guided = bool(np.float32(cfg_weight) != 1)  # in float32, as a program of many rows compares it
    return sampling, StaticSampling(guided, greedy, filtered)


def apply_cfg(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array) -> jax.Array:
    """Classifier-free guidance u + w (c - u), as in the official `generation_inference.py`."""
    return unconditional + weight * (conditional - unconditional)


def filter_logits(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Sets to -inf all but the `top_k` largest and the nucleus of mass `top_p` among those.

    The nucleus is the smallest set of most likely classes whose mass reaches `top_p` (Holtzman et
    al. 2020, arXiv:1904.09751); the most likely class always stays. Works on ranks, so that equal
    logits do not let more than `top_k` through.

    Args:
      logits: float32 [B, V].
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    ranked = jnp.where(jnp.arange(logits.shape[-1]) < top_k, ranked, -jnp.inf)
    mass = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(mass, axis=-1) - mass  # mass of all classes that are more likely
    # The cumulated mass may round to less than 1: keep everything when top_p is 1. It may itself round to 0.
    first = jnp.arange(logits.shape[-1]) == 0
    ranked = jnp.where((before < top_p) | (top_p >= 1) | first, ranked, -jnp.inf)
    return jnp.take_along_axis(ranked, jnp.argsort(order, axis=-1), axis=-1)


def sample(
    logits: jax.Array, keys: jax.Array, sampling: SamplingParams, static: StaticSampling
) -> jax.Array:
    """Draws one class a row.

    Args:
      logits: float32 [B, V].
      keys: [B] random keys, one a row, so that a row does not depend on its neighbours.

    Returns:
      int32 [B].
    """
    if static.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    drawn = jax.vmap(jax.random.categorical)(keys, _warp(logits, sampling, static))
    if jnp.ndim(sampling.temperature):
        drawn = jnp.where(_greedy_rows(sampling), jnp.argmax(logits, axis=-1), drawn)
    return drawn.astype(jnp.int32)


def log_probs(
    logits: jax.Array, tokens: jax.Array, sampling: SamplingParams, static: StaticSampling
) -> jax.Array:
    """Log-probability of each token under the distribution that `sample` draws from: 0 if it is greedy.

    Args:
      logits: float32 [B, V].
      tokens: int32 [B], drawn by `sample`.

    Returns:
      float32 [B].
    """
    if static.greedy:
        return jnp.zeros(tokens.shape, jnp.float32)
    found = token_log_probs(_warp(logits, sampling, static), tokens)
    if jnp.ndim(sampling.temperature):
        found = jnp.where(_greedy_rows(sampling), 0.0, found)
    return found


def _greedy_rows(sampling: SamplingParams) -> jax.Array:
    """Which rows of a program that is not greedy are so, bool [B]."""
    return jnp.reshape(sampling.temperature, -1) == 0


def token_log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Logits float32 [..., V] and tokens int32 [...] -> float32 [...]."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _warp(logits: jax.Array, sampling: SamplingParams, static: StaticSampling) -> jax.Array:
    """Temperature, then top-k and top-p."""
    temperature = sampling.temperature
    if jnp.ndim(temperature):
        temperature = jnp.where(temperature == 0, 1.0, temperature)
    logits = logits / temperature
    return filter_logits(logits, sampling.top_k, sampling.top_p) if static.filtered else logits


def fold_in(keys: jax.Array, data: jax.Array) -> jax.Array:
    """`jax.random.fold_in` of one number into each of [B] keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)
