"""Janus: two image encoders around one language model.

Janus-Pro (arXiv:2501.17811) figure 3; official `janus/models/modeling_vlm.py`. Every public method
is a pure function of (params, inputs): `model.apply({"params": params}, ..., method="name")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax.batch import TOKEN_GEN, TOKEN_UND
from janus_jax.config import JanusConfig, Policy
from janus_jax.models.adaptor import Adaptor, ImageHead
from janus_jax.models.decoder import Cache, Decoder
from janus_jax.models.layers import Embed
from janus_jax.models.layout import Layout
from janus_jax.models.merging import merge_features, sources_in_order
from janus_jax.models.packed_attention import Segments
from janus_jax.models.siglip import SigLIP
from janus_jax.models.slices import in_slices
from janus_jax.models.target_log_probs import Head, log_probs
from janus_jax.models.vqgan import VQModel
from janus_jax.pixels import to_float

Batch = Mapping[str, jax.Array]


class JanusModel(nn.Module):
    """The whole model.

    Attributes:
      config: architecture.
      policy: dtypes.
      remat: what SigLIP and decoder blocks keep for the backward pass, of `blocks.POLICIES`: "none"
        (recompute nothing) to "full".
      attention: back end for packed rows, of `packed_attention.BACK_ENDS`.
      layout: of the activations of training on devices.
      targets_at_once: text targets of a row whose logits exist at a time (and as many logits of image codes);
        0 for all.
      pictures_at_once: pictures of a row that pass an encoder at a time; 0 for all.
    """

    config: JanusConfig
    policy: Policy = Policy()
    remat: str = "none"
    attention: str = "blocked"
    layout: Layout = Layout()
    targets_at_once: int = 0
    pictures_at_once: int = 0

    def setup(self):
        config, policy = self.config, self.policy
        kinds = {"dtype": policy.compute, "param_dtype": policy.param}
        layers = {
            "scan_layers": config.scan_layers,
            "remat": self.remat,
            "layout": self.layout,
        }
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
          cache_index: scalar, where in the cache this call's keys start.

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

    def target_codes(self, batch: Batch) -> jax.Array:
        """Codes int32 [B, G, N] of the pictures that a batch generates; N is 0 where it generates none.

        They are `gen_codes` if the batch has them; else the image tokenizer encodes `gen_images`, without a
        gradient.
        """
        if "gen_codes" in batch:
            return batch["gen_codes"]
        images = batch["gen_images"]
        if not images.size:
            return jnp.zeros((*images.shape[:2], 0), jnp.int32)
        vq, variables = self.vq.unbind()
        encode = lambda params, pixels: vq.apply(params, to_float(pixels), method="encode")
        codes = in_slices(encode, variables, images, self.pictures_at_once, self.layout)
        return jax.lax.stop_gradient(codes)

    def hidden(self, batch: Batch) -> jax.Array:
        """The forward pass of training: hidden states [B, T, D] of packed rows, after the final norm.

        Ids, pictures to understand and codes of pictures to generate are embedded and merged by
        `token_types`. The last code of a picture feeds nothing.

        Args:
          batch: see `janus_jax.batch`; what belongs to targets is not read.
        """
        pin = lambda x: self.layout.pin(x, "rows", None, None)
        embeds, types = pin(self._lookup(batch["tokens"])), batch["token_types"]
        if batch["und_images"].size:
            features = self._image_features(batch["und_images"])
            features = pin(rearrange(features, "B U P D -> (B U) P D"))
            features = rearrange(self.und_adaptor(features), "(B U) P D -> B (U P) D", B=len(types))
            embeds = pin(
                merge_features(embeds, pin(features), sources_in_order(types == TOKEN_UND))
            )
        codes = self.target_codes(batch)
        if codes.size:
            features = rearrange(self.embed_codes(codes[..., :-1]), "B G N D -> B (G N) D")
            embeds = merge_features(embeds, pin(features), sources_in_order(types == TOKEN_GEN))
        segments = Segments(batch["segment_ids"], self.attention, self.layout)
        return self.decode(pin(embeds), batch["positions"], segments)[0]

    def _image_features(self, images: jax.Array) -> jax.Array:
        """Pictures uint8 [B, U, h, w, 3] -> SigLIP features [B, U, P, width]."""
        siglip = self.siglip.clone(parent=None, layout=Layout())  # each device has rows of its own
        params = self.layout.gather("siglip", self.siglip.variables["params"])
        encode = lambda params, pixels: siglip.apply({"params": params}, to_float(pixels))
        again = self.remat == "none"
        return in_slices(encode, params, images, self.pictures_at_once, self.layout, again)

    def _lookup(self, ids: jax.Array) -> jax.Array:
        """`embed_text` in a table that is gathered first, as shards of it would give parts of all rows."""
        embed, variables = self.decoder.embed.unbind()
        table = self.layout.gather("decoder/embed", variables["params"])
        return embed.apply({"params": table}, ids)

    def target_log_probs(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of a batch's targets; each head runs only at the positions it is needed.

        Code 0 of a picture is predicted at its `<begin_of_image>`, code i + 1 where code i is fed.

        Args:
          batch: see `janus_jax.batch`.

        Returns:
          Of `target_ids`, float32 [B, M], and of the codes of the pictures to generate, float32 [B, G, N].
          Padding has some value, too: weight it by `target_weights` and `gen_weights`.
        """
        codes = self.target_codes(batch)
        hidden = self.hidden({**batch, "gen_codes": codes})
        head, params = self._whole_head(self.decoder.lm_head, "decoder/lm_head")
        positions, ids = batch["target_positions"], batch["target_ids"]
        text = log_probs(head, params, hidden, positions, ids, self.targets_at_once, self.layout)
        if not codes.size:
            return text, jnp.zeros(codes.shape)
        steps = batch["gen_starts"][..., None] + jnp.arange(codes.shape[-1])
        steps = jnp.minimum(steps, hidden.shape[1] - 1)
        head, params = self._whole_head(self.image_head, "image_head")
        # As many logits at a time as of text.
        at_once = self.targets_at_once * self.config.decoder.vocab_size
        at_once = -(-at_once // self.config.vq.codebook_size)
        return text, log_probs(head, params, hidden, steps, codes, at_once, self.layout)

    def _whole_head(self, module: nn.Module, name: str) -> tuple[Head, dict[str, Any]]:
        """A head as a function, and its parameters, gathered once for all slices of targets."""
        head, variables = module.unbind()
        apply = lambda params, hidden: head.apply({"params": params}, hidden)
        return apply, self.layout.gather(name, variables["params"])

    def init_all(self) -> None:
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
