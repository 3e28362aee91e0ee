"""Image tokenizer: the LlamaGen VQ-GAN of `janus/models/vq_model.py`, encoder, quantiser, decoder.

Always computed in float32: the nearest code is decided by near ties.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from janus_jax.config import Policy, VQConfig
from janus_jax.models.attention import attend
from janus_jax.models.layers import Conv, GroupNorm, initializer


def normalize(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) over the last axis, as `torch.nn.functional.normalize`.

    Written on the square so that the gradient at x = 0 is finite.
    """
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-24))


class _VQModule(nn.Module):
    """What the parts below share: how to make a convolution and a norm."""

    config: VQConfig
    param_dtype: jnp.dtype

    def conv(self, features: int, kernel_size: int = 3, *, name: str, **fields) -> Conv:
        return Conv(
            features,
            kernel_size,
            implementation=self.config.conv_impl,
            param_dtype=self.param_dtype,
            name=name,
            **fields,
        )

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.config.norm_groups, param_dtype=self.param_dtype, name=name)

    def child(self, kind: type[nn.Module], name: str, **fields) -> nn.Module:
        return kind(self.config, self.param_dtype, name=name, **fields)


class ResBlock(_VQModule):
    """Norm, swish, 3x3 convolution, twice, around a shortcut (1x1 where the channels change)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, name="conv1")(nn.swish(self.norm("norm1")(x)))
        y = self.conv(self.features, name="conv2")(nn.swish(self.norm("norm2")(y)))
        if x.shape[-1] != self.features:
            x = self.conv(self.features, 1, name="shortcut")(x)
        return x + y


class AttnBlock(_VQModule):
    """Single-head self-attention over all H*W positions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = self.norm("norm")(x)
        q, k, v = (
            rearrange(self.conv(channels, 1, name=name)(y), "b h w c -> b (h w) 1 c")
            for name in ("q", "k", "v")
        )
        y = rearrange(attend(q, k, v), "b (h w) 1 c -> b h w c", h=x.shape[1])
        return x + self.conv(channels, 1, name="proj")(y)


class Level(_VQModule):
    """One resolution: residual blocks, attention after each if asked for, then a change of size."""

    features: int
    blocks: int
    attention: bool
    resize: str = ""  # "down", "up" or ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = self.child(ResBlock, f"res_{i}", features=self.features)(x)
            if self.attention:
                x = self.child(AttnBlock, f"attn_{i}")(x)
        if self.resize == "down":  # official: one row below, one column right, then no padding
            below_right = ((0, 1), (0, 1))
            x = self.conv(self.features, name="downsample", stride=2, padding=below_right)(x)
        elif self.resize == "up":
            x = repeat(x, "b h w c -> b (h i) (w j) c", i=2, j=2)  # nearest
            x = self.conv(self.features, name="upsample")(x)
        return x


class Encoder(_VQModule):
    """Pixels [B, H, W, 3] -> [B, h, w, z_channels]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, p = self.config, self.config.patch_size
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        x = self.conv(config.ch, name="conv_in")(x)
        last = len(config.ch_mult) - 1
        for level, mult in enumerate(config.ch_mult):
            x = self.child(
                Level,
                f"level_{level}",
                features=config.ch * mult,
                blocks=config.num_res_blocks,
                attention=level == last,
                resize="" if level == last else "down",
            )(x)
        x = self.child(ResBlock, "mid_0", features=x.shape[-1])(x)
        x = self.child(AttnBlock, "mid_1")(x)
        x = self.child(ResBlock, "mid_2", features=x.shape[-1])(x)
        return self.conv(config.z_channels, name="conv_out")(nn.swish(self.norm("norm_out")(x)))


class Decoder(_VQModule):
    """[B, h, w, z_channels] -> pixels [B, H, W, 3]; `level_0` is the LOWEST resolution."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        config, p = self.config, self.config.patch_size
        x = self.conv(config.ch * config.ch_mult[-1], name="conv_in")(z)
        x = self.child(ResBlock, "mid_0", features=x.shape[-1])(x)
        x = self.child(AttnBlock, "mid_1")(x)
        x = self.child(ResBlock, "mid_2", features=x.shape[-1])(x)
        last = len(config.ch_mult) - 1
        for level, mult in enumerate(reversed(config.ch_mult)):
            x = self.child(
                Level,
                f"level_{level}",
                features=config.ch * mult,
                blocks=config.num_res_blocks + 1,
                attention=level == 0,
                resize="" if level == last else "up",
            )(x)
        x = self.conv(3 * p * p, name="conv_out")(nn.swish(self.norm("norm_out")(x)))
        return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)


class Quantizer(_VQModule):
    """Codebook on the unit sphere: both sides of every comparison are l2-normalised."""

    def setup(self):
        shape = (self.config.codebook_size, self.config.codebook_dim)
        self.embedding = self.param("embedding", initializer("embedding"), shape, self.param_dtype)

    def __call__(self, z: jax.Array) -> jax.Array:
        """Codes of the nearest vectors: [..., c] -> int32 [...]."""
        # |z|^2 is the same for every code and |e| = 1, so the smallest distance is the largest
        # product. Full precision: a TPU's or GPU's default would move near ties.
        products = jnp.einsum(
            "...C,VC->...V",
            normalize(z),
            normalize(self.embedding.astype(jnp.float32)),
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.argmax(products, axis=-1).astype(jnp.int32)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Unit vectors of codes: int [...] -> float32 [..., c]."""
        return normalize(jnp.take(self.embedding, codes, axis=0, mode="clip").astype(jnp.float32))


class VQModel(nn.Module):
    """Encoder, quantiser and decoder.

    Attributes:
      config: geometry.
      policy: only its `param_dtype` is used; the computation is float32.
    """

    config: VQConfig
    policy: Policy = Policy()

    def setup(self):
        config, param_dtype = self.config, self.policy.param
        self.encoder = Encoder(config, param_dtype)
        self.decoder = Decoder(config, param_dtype)
        self.quantize = Quantizer(config, param_dtype)
        self.quant_conv = Conv(config.codebook_dim, 1, param_dtype=param_dtype)
        self.post_quant_conv = Conv(config.z_channels, 1, param_dtype=param_dtype)

    def latents(self, pixels: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [-1, 1] -> unnormalised [B, h, w, codebook_dim] before quantisation."""
        size = self.config.image_size
        if pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"the VQ model expects [B, {size}, {size}, 3], not {pixels.shape}")
        return self.quant_conv(self.encoder(pixels.astype(jnp.float32)))

    def encode(self, pixels: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [-1, 1] -> int32 codes [B, num_codes], row-major."""
        return rearrange(self.quantize(self.latents(pixels)), "b h w -> b (h w)")

    def decode_latents(self, vectors: jax.Array) -> jax.Array:
        """Code vectors [B, h, w, codebook_dim] -> float32 pixels [B, H, W, 3], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(vectors))

    def decode(self, codes: jax.Array) -> jax.Array:
        """int codes [B, num_codes], row-major -> float32 pixels [B, H, W, 3], about [-1, 1]."""
        grid = rearrange(codes, "b (h w) -> b h w", h=self.config.grid)
        return self.decode_latents(self.quantize.lookup(grid))

    def __call__(self, pixels: jax.Array, quantize: bool = True) -> dict[str, jax.Array]:
        """Auto-encodes, for training the tokenizer.

        Losses as in LlamaGen's `VectorQuantizer`: means over all elements of the squared difference
        between the unit latent and its unit code vector, gradient into one side each; the trainer
        weights the commitment loss (beta, officially 0.25).

        Args:
          pixels: [B, H, W, 3] in [-1, 1].
          quantize: False decodes the unit latents themselves: a plain auto-encoder, for warm-up.

        Returns:
          reconstruction [B, H, W, 3]; codes int32 [B, num_codes]; z [B, h, w, c] before
          normalisation; quantized [B, h, w, c] unit code vectors (gradient into the codebook);
          codebook_loss and commitment_loss, scalars.
        """
        z = self.latents(pixels)
        unit = normalize(z)
        codes = self.quantize(z)
        quantized = self.quantize.lookup(codes)
        stop = jax.lax.stop_gradient
        # Straight through: the decoder sees the code vector, the encoder gets its gradient.
        seen = unit + stop(quantized - unit) if quantize else unit
        return {
            "reconstruction": self.decode_latents(seen),
            "codes": rearrange(codes, "b h w -> b (h w)"),
            "z": z,
            "quantized": quantized,
            "codebook_loss": jnp.mean((quantized - stop(unit)) ** 2),
            "commitment_loss": jnp.mean((stop(quantized) - unit) ** 2),
        }
