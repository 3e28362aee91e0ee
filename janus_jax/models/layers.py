"""Layers that every part of the network shares: dense, convolution, embedding and norms.

Parameters are kept in `param_dtype` and cast to `dtype` where they are used; products accumulate in
float32 and are cast back to `dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax.models.einsum import project

NORM_EPS = 1e-6  # every LayerNorm and GroupNorm of the official model; torch's default is 1e-5

# Standard deviations that parameters start with, by name: 1/sqrt(fan-in) for kernels, 1 for tables, so
# that ids, image features and image codes enter the residual stream at one size. Starting smaller, as
# large models do, drowns what a token is in what random layers add, and a small model learns late to copy.
STDDEV: dict[str, Callable[[Sequence[int]], float]] = {
    "kernel": lambda shape: math.prod(shape[:-1]) ** -0.5,
    "embedding": lambda shape: 1.0,
    # Half the size of the patches it is added to: seen by every layer, and not hiding them.
    "pos_embed": lambda shape: 0.5,
}
CONSTANT = {"bias": 0.0, "scale": 1.0}


def initializer(name: str) -> nn.initializers.Initializer:
    """The Flax initialiser of parameters called `name`."""
    if name in CONSTANT:
        return nn.initializers.constant(CONSTANT[name])

    def normal(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
        return (jax.random.normal(key, shape) * STDDEV[name](shape)).astype(dtype)

    return normal


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU, as `torch.nn.GELU()`; JAX's default is the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


# Leaves of a low-rank adapter beside a kernel [I, O]: [I, r], [r, O], and what their product is times.
LORA_A, LORA_B, LORA_SCALE = "lora_a", "lora_b", "lora_scale"
# Beside a kernel in int8: what its outputs [O] are times.
KERNEL_SCALE = "kernel_scale"


class Dense(nn.Module):
    """Affine map of the last axis: [..., I] -> [..., features].

    Where the parameters have `LORA_A`, `LORA_B` and `LORA_SCALE` beside the kernel (`adapters.add_lora`), the map
    is that of kernel + scale * a @ b, computed without this sum (LoRA, arXiv 2106.09685). A kernel in int8 has
    `KERNEL_SCALE` beside it (`adapters.quantize`).

    Attributes:
      features: output width.
      dtype: dtype of the computation and, unless `out_dtype` is given, of the result.
      param_dtype: dtype the parameters are stored in.
      use_bias: whether to add a bias.
      out_dtype: dtype of the result; float32 for logits.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    use_bias: bool = True
    out_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", initializer("kernel"), shape, self.param_dtype)
        x = x.astype(self.dtype)
        y = project(x, kernel.astype(self.dtype))
        if self.has_variable("params", KERNEL_SCALE):
            y = y * self.get_variable("params", KERNEL_SCALE).astype(jnp.float32)
        if self.has_variable("params", LORA_A):
            y = y + self._adapted(x)
        if self.use_bias:
            bias = self.param("bias", initializer("bias"), (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        return y.astype(self.out_dtype or self.dtype)

    def _adapted(self, x: jax.Array) -> jax.Array:
        """What an adapter adds, in float32."""
        a, b, scale = (self.get_variable("params", name) for name in (LORA_A, LORA_B, LORA_SCALE))
        inner = project(x, a.astype(self.dtype)).astype(self.dtype)
        return project(inner, b.astype(self.dtype)) * scale.astype(jnp.float32)


class Embed(nn.Module):
    """Table lookup: integer ids [...] -> [..., features].

    Ids outside [0, num_embeddings) are clamped, so positions that are overwritten later may hold
    any id.
    """

    num_embeddings: int
    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        shape = (self.num_embeddings, self.features)
        table = self.param("embedding", initializer("embedding"), shape, self.param_dtype)
        return jnp.take(table, ids, axis=0, mode="clip").astype(self.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, dtype: jnp.dtype) -> jax.Array:
    """x / rms(x) over the last axis, in float32, cast to `dtype` BEFORE the weight (LLaMA)."""
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x.astype(dtype) * scale.astype(dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight."""

    eps: float
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", initializer("scale"), (x.shape[-1],), self.param_dtype)
        return rms_norm(x, scale, self.eps, self.dtype)


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the official epsilon and the two-pass variance."""

    epsilon: float = NORM_EPS
    use_fast_variance: bool = False


class GroupNorm(nn.GroupNorm):
    """GroupNorm over [B, H, W, C] with the official epsilon and the two-pass variance."""

    epsilon: float = NORM_EPS
    use_fast_variance: bool = False


class Conv(nn.Module):
    """2-D convolution [B, H, W, I] -> [B, H', W', features], kernel HWIO, with bias.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      stride: step in both directions.
      padding: ((top, bottom), (left, right)); None keeps the size of a stride-1 odd kernel.
      implementation: "lax" (the convolution primitive) or "im2col" (shifted copies and one matrix
        product, faster to train on CPUs). Same parameters and the same numbers up to rounding.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    implementation: str = "lax"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, s = self.kernel_size, self.stride
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", initializer("kernel"), shape, self.param_dtype)
        bias = self.param("bias", initializer("bias"), (self.features,), self.param_dtype)
        kernel = kernel.astype(self.dtype)
        padding = self.padding or (((k - 1) // 2, k // 2),) * 2
        x = x.astype(self.dtype)
        if k == 1 and s == 1:
            y = project(x, _flat(kernel))
        elif self.implementation == "im2col":
            y = project(_patches(x, k, s, padding), _flat(kernel))
        elif self.implementation == "lax":
            y = jax.lax.conv_general_dilated(
                x, kernel, (s, s), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            raise ValueError(f"unknown convolution implementation {self.implementation!r}")
        return (y + bias.astype(self.dtype)).astype(self.dtype)


def _patches(x: jax.Array, k: int, stride: int, padding) -> jax.Array:
    """The k*k input positions of every output position: [B, H, W, I] -> [B, H', W', k*k*I]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height = (x.shape[1] - k) // stride + 1
    width = (x.shape[2] - k) // stride + 1
    return jnp.concatenate(
        [
            x[
                :,
                i : i + stride * (height - 1) + 1 : stride,
                j : j + stride * (width - 1) + 1 : stride,
            ]
            for i in range(k)
            for j in range(k)
        ],
        axis=-1,
    )


def _flat(kernel: jax.Array) -> jax.Array:
    return rearrange(kernel, "h w i o -> (h w i) o")
