"""Understanding encoder: SigLIP-L/16 as in `janus/models/siglip_vit.py` (timm layout).

A pre-norm ViT without class token or attention pooling: all patch tokens leave after the final
norm.
"""

from __future__ import annotations

import flax.linen as nn
import jax
from einops import rearrange

from janus_jax.config import Policy, SigLIPConfig
from janus_jax.models.attention import attend
from janus_jax.models.blocks import make_blocks
from janus_jax.models.einsum import project
from janus_jax.models.layers import Dense, LayerNorm, gelu, initializer
from janus_jax.models.layout import Layout


class PatchEmbed(nn.Module):
    """Non-overlapping patches, projected: [B, H, W, 3] -> [B, P, D], row-major."""

    config: SigLIPConfig
    policy: Policy

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        p, width = self.config.patch_size, self.config.width
        dtype = self.policy.compute
        kernel = self.param("kernel", initializer("kernel"), (p, p, 3, width), self.policy.param)
        bias = self.param("bias", initializer("bias"), (width,), self.policy.param)
        patches = rearrange(pixels.astype(dtype), "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
        flat = rearrange(kernel.astype(dtype), "p q c d -> (p q c) d")
        return (project(patches, flat) + bias.astype(dtype)).astype(dtype)


class Block(nn.Module):
    """Pre-norm attention and MLP; returns (x, None) so that it can be scanned."""

    config: SigLIPConfig
    policy: Policy
    layout: Layout

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        config = self.config
        pin = lambda x: self.layout.pin(x, "rows", None, None)
        x = pin(x)
        kinds = {"dtype": self.policy.compute, "param_dtype": self.policy.param}

        y = LayerNorm(**kinds, name="norm1")(x)
        qkv = Dense(3 * config.width, **kinds, name="qkv")(y)
        q, k, v = rearrange(qkv, "b p (three n h) -> three b p n h", three=3, n=config.heads)
        y = rearrange(attend(q, k, v), "b p n h -> b p (n h)")
        x = pin(x + Dense(config.width, **kinds, name="proj")(y))

        y = LayerNorm(**kinds, name="norm2")(x)
        y = gelu(Dense(config.mlp_ratio * config.width, **kinds, name="fc1")(y))
        return pin(x + Dense(config.width, **kinds, name="fc2")(y)), None


class SigLIP(nn.Module):
    """Image to patch features.

    Attributes:
      config: geometry.
      policy: dtypes.
      scan_layers: parameters stacked under `blocks` instead of `blocks_0`, `blocks_1`, ...
      remat: see `blocks.remat_block`.
      layout: of the activations on devices.
    """

    config: SigLIPConfig
    policy: Policy = Policy()
    scan_layers: bool = False
    remat: str = "none"
    layout: Layout = Layout()

    def setup(self):
        config, policy = self.config, self.policy
        self.patch_embed = PatchEmbed(config, policy)
        self.pos_embed = self.param(
            "pos_embed",
            initializer("pos_embed"),
            (config.num_patches, config.width),
            policy.param,
        )
        self.blocks = make_blocks(
            Block,
            config.layers,
            scan=self.scan_layers,
            remat=self.remat,
            broadcast=0,
            config=config,
            policy=policy,
            layout=self.layout,
        )
        self.norm = LayerNorm(dtype=policy.compute, param_dtype=policy.param)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [-1, 1], H = W = image_size -> [B, P, D] after the final norm."""
        size = self.config.image_size
        if pixels.shape[1:] != (size, size, 3):
            # The learned positions are not interpolated, as in the official model.
            raise ValueError(f"SigLIP expects [B, {size}, {size}, 3], not {pixels.shape}")
        x = self.patch_embed(pixels) + self.pos_embed.astype(self.policy.compute)
        if self.scan_layers:
            x, _ = self.blocks(x)
        else:
            for block in self.blocks:
                x, _ = block(x)
        return self.norm(x)
