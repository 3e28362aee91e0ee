"""Janus: two image encoders around one language model.

Janus-Pro (arXiv:2501.17811) figure 3; official `janus/models/modeling_vlm.py`. Every public method
is a pure function of (params, inputs): `model.apply({"params": params}, ..., method="name")`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from janus_jax.config import JanusConfig, Policy
from janus_jax.models.adaptor import Adaptor, ImageHead
from janus_jax.models.decoder import Cache, Decoder
from janus_jax.models.layers import Embed
from janus_jax.models.siglip import SigLIP
from janus_jax.models.vqgan import VQModel


class JanusModel(nn.Module):
    """The whole model.

    Attributes:
      config: architecture.
      policy: dtypes.
      remat: what SigLIP and decoder blocks keep for the backward pass: "none" (recompute nothing),
        "full" or "dots" (see `blocks.remat_block`).
      attention: back end for packed rows (see `packed_attention`).
    """

    config: JanusConfig
    policy: Policy = Policy()
    remat: str = "none"
    attention: str = "xla"

    def setup(self):
        config, policy = self.config, self.policy
        kinds = {"dtype": policy.compute, "param_dtype": policy.param}
        layers = {"scan_layers": config.scan_layers, "remat": self.remat}
        self.siglip = SigLIP(config.siglip, policy, **layers)
        self.und_adaptor = Adaptor(config.decoder.width, **kinds)
        # Its own table, not the tokenizer's codebook.
        self.gen_embed = Embed(config.vq.codebook_size, config.vq.codebook_dim, **kinds)
        self.gen_adaptor = Adaptor(config.decoder.width, **kinds)
        self.image_head = ImageHead(config.vq.codebook_size, **kinds)
        self.decoder = Decoder(config.decoder, policy, **layers)
        self.vq = VQModel(config.vq, policy)

    def siglip_features(self, pixels: jax.Array) -> jax.Array:
        """Pixels [B, H, W, 3] in [-1, 1] -> SigLIP features [B, P, width] after the final norm."""
        return self.siglip(pixels)

    def embed_images(self, pixels: jax.Array) -> jax.Array:
        """Pixels [B, H, W, 3] in [-1, 1] -> understanding tokens for the decoder [B, P, D]."""
        return self.und_adaptor(self.siglip(pixels))

    def embed_text(self, ids: jax.Array) -> jax.Array:
        """Token ids [...] -> [..., D]."""
        return self.decoder.embed_text(ids)

    def embed_codes(self, codes: jax.Array) -> jax.Array:
        """Image codes [...] -> generation tokens for the decoder [..., D]."""
        return self.gen_adaptor(self.gen_embed(codes))

    def decode(
        self,
        embeds: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: Cache | None = None,
        cache_index: jax.Array | int | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs the language model; see `Decoder.__call__`.

        Args:
          embeds: [B, T, D].
          positions: [B, T] integer.
          mask: [B, T, S] bool, True = attend; S = T without a cache. `Segments` for packed rows.
          cache: from `init_cache`; unrolled layers only.
          cache_index: scalar slot where this call's keys start.

        Returns:
          Hidden states after the final norm [B, T, D] and the updated cache (None without one).
        """
        return self.decoder(embeds, positions, mask, cache, cache_index)

    def text_logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 [..., V]."""
        return self.decoder.logits(hidden)

    def image_logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 [..., codebook_size]."""
        return self.image_head(hidden)

    def encode_codes(self, pixels: jax.Array) -> jax.Array:
        """Pixels [B, H, W, 3] in [-1, 1] -> int32 codes [B, num_codes], row-major."""
        return self.vq.encode(pixels)

    def decode_codes(self, codes: jax.Array) -> jax.Array:
        """Codes [B, num_codes] -> float32 pixels [B, H, W, 3], about [-1, 1]."""
        return self.vq.decode(codes)

    def vq_forward(self, pixels: jax.Array, quantize: bool = True) -> dict[str, jax.Array]:
        """Auto-encodes pixels for tokenizer training; see `VQModel.__call__`."""
        return self.vq(pixels, quantize)

    def touch(self) -> None:
        """Runs every sub-module once on zeros, so that `init` creates every parameter."""
        size = self.config.siglip.image_size
        self.embed_images(jnp.zeros((1, size, size, 3)))
        size = self.config.vq.image_size
        self.vq_forward(jnp.zeros((1, size, size, 3)))
        x = self.embed_text(jnp.zeros((1, 1), jnp.int32))
        x = x + self.embed_codes(jnp.zeros((1, 1), jnp.int32))
        hidden, _ = self.decode(x, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool))
        self.text_logits(hidden)
        self.image_logits(hidden)
