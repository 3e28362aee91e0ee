"""Products with the weights of sampling: any dtype, any number of rows, accumulated in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference import cpu

# On a CPU without oneDNN, up to so many rows are multiplied one by one: see `_on_cpu`.
_FEW_ROWS = 3


def matmul(
    x: jax.Array, weight: Any, axes: int = 1, dtype: jnp.dtype | str = jnp.float32
) -> jax.Array:
    """Contracts the last `axes` axes of both: [..., *in] and [*out, *in] -> [..., *out].

    Weights have their outputs first, so that what one output needs lies side by side in memory.

    Args:
      x: activations.
      weight: an array of the dtype of x or a wider one, in which it is computed then; or int8 values with a
        scale for each output (`qwix.QArray`): the scale is applied to the result, so only int8 is read.
      dtype: of the result, rounded once from float32.
    """
    values, scale = weight, None
    if hasattr(weight, "qvalue"):
        values, scale = weight.qvalue, weight.scale
    exact = dtype if scale is None else jnp.float32
    y = jax.lax.platform_dependent(
        x,
        values,
        cpu=lambda x, w: _on_cpu(x, w, axes, exact),
        default=lambda x, w: _dot(x, w, axes).astype(exact),
    )
    if scale is not None:
        y = y * scale.reshape(scale.shape[:-axes]).astype(jnp.float32)
    return y.astype(dtype)


def _dot(x: jax.Array, weight: jax.Array, axes: int, result: jnp.dtype = jnp.float32) -> jax.Array:
    contracted = (range(x.ndim - axes, x.ndim), range(weight.ndim - axes, weight.ndim))
    dtype = jnp.promote_types(x.dtype, weight.dtype)  # int8 gives that of x
    return jax.lax.dot_general(
        x.astype(dtype),
        weight.astype(dtype),
        (tuple(map(tuple, contracted)), ((), ())),
        preferred_element_type=result,
    )


def _on_cpu(x: jax.Array, weight: jax.Array, axes: int, dtype: jnp.dtype) -> jax.Array:
    """What XLA's CPU backend runs fastest; the same numbers up to the order of summation.

    oneDNN wants one dtype for everything, and is slow with one row in bfloat16.

    Without it, a product of several rows packs the whole float32 weight first, that of one row just reads it:
    few rows are multiplied one by one. In bfloat16 it is the other way round: one row is the slow case. A
    product with int8 writes the whole weight in float32 first, a loop that multiplies and adds does not.
    """
    lead, out = x.shape[: x.ndim - axes], weight.shape[: weight.ndim - axes]
    rows = int(np.prod(lead))
    # Else what made x may become a part of the loops over the weight.
    flat = jax.lax.optimization_barrier(x.reshape(rows, -1))
    weight = weight.reshape(int(np.prod(out)), -1)
    if weight.dtype == dtype and cpu.by_onednn(rows, weight.size):
        twice = rows == 1 and dtype == jnp.bfloat16
        y = _dot(jnp.concatenate([flat, flat]) if twice else flat, weight, 1, dtype)[:rows]
    elif weight.dtype == jnp.int8 and rows <= _FEW_ROWS:
        y = jnp.concatenate([_reduce(flat[i : i + 1], weight) for i in range(rows)])
    elif weight.dtype == jnp.bfloat16 and rows == 1:
        y = _dot(jnp.concatenate([flat, flat]), weight, 1)[:1]
    elif weight.dtype == jnp.float32 and rows <= _FEW_ROWS:
        y = jnp.concatenate([_dot(flat[i : i + 1], weight, 1) for i in range(rows)])
    else:
        y = _dot(flat, weight, 1)
    return y.reshape(*lead, *out).astype(dtype)


def _reduce(x: jax.Array, weight: jax.Array) -> jax.Array:
    """[1, I] x [O, I] -> [1, O] in one loop over the weight."""
    return (weight.astype(jnp.float32) * x.astype(jnp.float32)).sum(axis=1)[None]
