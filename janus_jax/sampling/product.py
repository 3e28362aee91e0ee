"""Products with the weights of sampling: any dtype, any number of rows, accumulated in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# On a CPU, up to so many rows are reduced row by row: see `_on_cpu`.
_FEW_ROWS = 4


def product(x: jax.Array, weight: Any, axes: int = 1) -> jax.Array:
    """Contracts the last `axes` axes of both: [..., *in] and [*out, *in] -> float32 [..., *out].

    Weights have their outputs first, so that what one output needs lies side by side in memory.

    Args:
      x: activations.
      weight: an array of the dtype of x, or int8 values with a scale for each output
        (`qwix.QArray`): the scale is applied to the result, so only int8 is read.
    """
    values, scale = weight, None
    if hasattr(weight, "qvalue"):
        values, scale = weight.qvalue, weight.scale
    y = jax.lax.platform_dependent(
        x, values, cpu=lambda x, w: _on_cpu(x, w, axes), default=lambda x, w: _dot(x, w, axes)
    )
    if scale is not None:
        y = y * scale.reshape(scale.shape[:-axes]).astype(jnp.float32)
    return y


def _dot(x: jax.Array, weight: jax.Array, axes: int) -> jax.Array:
    contracted = (range(x.ndim - axes, x.ndim), range(weight.ndim - axes, weight.ndim))
    return jax.lax.dot_general(
        x,
        weight.astype(x.dtype),
        (tuple(map(tuple, contracted)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _on_cpu(x: jax.Array, weight: jax.Array, axes: int) -> jax.Array:
    """What XLA's CPU backend runs fastest; the same numbers up to the order of summation.

    Its matrix product of few rows packs the whole weight first. One loop that multiplies and adds reads
    it once: three times as fast in float32, and the only form in which int8 is not expanded first.
    bfloat16 products are as fast from two rows on, but fourteen times slower with one.
    """
    lead, out = x.shape[: x.ndim - axes], weight.shape[: weight.ndim - axes]
    rows = int(np.prod(lead))
    flat = x.reshape(rows, -1)
    weight = weight.reshape(int(np.prod(out)), -1)
    if rows > _FEW_ROWS or (weight.dtype == jnp.bfloat16 and rows > 1):
        return _dot(flat, weight, 1).reshape(*lead, *out)
    flat, weight = flat.astype(jnp.float32), weight.astype(jnp.float32)
    zeros = (jnp.float32(0),) * rows
    add = lambda a, b: tuple(left + right for left, right in zip(a, b, strict=True))
    sums = jax.lax.reduce(tuple(weight * row for row in flat), zeros, add, (1,))
    return jnp.stack(sums).reshape(*lead, *out)
