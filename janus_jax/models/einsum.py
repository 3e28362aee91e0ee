"""Products in low precision that stay fast in both directions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Two-operand einsum, accumulated and returned in float32.

    The gradient comes in as float32; left alone it would meet the other, bfloat16, operand in a
    mixed product, which accelerators run as float32. Here it is rounded to the dtype of the
    operands first, as any bfloat16 layer does, so all three products run in that dtype and
    accumulate in float32. Float32 operands are not rounded.

    Args:
      spec: "ab,bc->ac"; every letter is in two of the three terms, no ellipsis.
      a: first operand.
      b: second operand, of the same dtype.
    """
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _forward(spec: str, a: jax.Array, b: jax.Array):
    # Not `einsum` again: a rematerialisation policy has to see the product itself.
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32), (a, b)


def _backward(spec: str, operands: tuple[jax.Array, jax.Array], gradient: jax.Array):
    a, b = operands
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    gradient = gradient.astype(a.dtype)
    to_a = jnp.einsum(f"{out},{right}->{left}", gradient, b, preferred_element_type=jnp.float32)
    to_b = jnp.einsum(f"{left},{out}->{right}", a, gradient, preferred_element_type=jnp.float32)
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


einsum.defvjp(_forward, _backward)


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Matrix product over the last axis, in float32: [..., I] and [I, O] -> [..., O]."""
    flat = x.reshape(-1, x.shape[-1])
    return einsum("ti,io->to", flat, kernel).reshape(*x.shape[:-1], -1)
