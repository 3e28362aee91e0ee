"""The small MLPs between encoders, decoder and codes (official `MlpProjector`, `vision_head`)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.models.layers import Dense, gelu


class Adaptor(nn.Module):
    """Two-layer MLP into the decoder's width: [..., I] -> [..., width]."""

    width: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Dense(self.width, self.dtype, self.param_dtype, name="fc1")(x)
        return Dense(self.width, self.dtype, self.param_dtype, name="fc2")(gelu(x))


class ImageHead(nn.Module):
    """Hidden states to logits over image codes: [..., D] -> float32 [..., codebook_size]."""

    codebook_size: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = gelu(Dense(x.shape[-1], self.dtype, self.param_dtype, name="proj")(x))
        return Dense(
            self.codebook_size,
            self.dtype,
            self.param_dtype,
            out_dtype=jnp.float32,
            name="head",
        )(x)
