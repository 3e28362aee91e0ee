"""Language model: LLaMA decoder (`LlamaForCausalLM`), on embeddings, with an explicit KV cache."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from janus_jax.config import DecoderConfig, JanusConfig, Policy
from janus_jax.models.attention import apply_rotary, attend, rotary
from janus_jax.models.blocks import make_blocks
from janus_jax.models.layers import Dense, Embed, RMSNorm
from janus_jax.models.layout import Layout
from janus_jax.models.packed_attention import Segments, packed_attention

LayerCache = dict[str, jax.Array]  # {"k", "v"}: [B, S, K, H]
Cache = tuple[LayerCache, ...]


def init_cache(config: JanusConfig, batch: int, length: int, dtype: jnp.dtype) -> Cache:
    """An empty KV cache: one {"k", "v"} of zeros [batch, length, K, H] a layer."""
    decoder = config.decoder
    shape = (batch, length, decoder.kv_heads, decoder.head_dim)
    return tuple(
        {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)} for _ in range(decoder.layers)
    )


class Attention(nn.Module):
    """Causal self-attention with rotary positions; no biases."""

    config: DecoderConfig
    policy: Policy
    layout: Layout

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        mask: jax.Array | Segments,
        cache: LayerCache | None,
        cache_index: jax.Array | int | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        config = self.config

        def project(heads: int, name: str) -> jax.Array:
            y = Dense(
                heads * config.head_dim,
                self.policy.compute,
                self.policy.param,
                use_bias=False,
                name=name,
            )(x)
            y = rearrange(y, "b t (n h) -> b t n h", n=heads)
            return self.layout.pin(y, "rows", None, "heads", None)

        q = apply_rotary(project(config.heads, "q_proj"), *angles)
        k = apply_rotary(project(config.kv_heads, "k_proj"), *angles)
        v = project(config.kv_heads, "v_proj")
        if cache is not None:
            start = (0, cache_index, 0, 0)
            cache = {
                "k": jax.lax.dynamic_update_slice(cache["k"], k.astype(cache["k"].dtype), start),
                "v": jax.lax.dynamic_update_slice(cache["v"], v.astype(cache["v"].dtype), start),
            }
            k, v = cache["k"].astype(q.dtype), cache["v"].astype(q.dtype)
        attention = packed_attention if isinstance(mask, Segments) else attend
        out = self.layout.pin(attention(q, k, v, mask), "rows", None, "heads", None)
        out = rearrange(out, "b t n h -> b t (n h)")
        out = Dense(
            config.width, self.policy.compute, self.policy.param, use_bias=False, name="o_proj"
        )(out)
        return out, cache


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)); no biases."""

    config: DecoderConfig
    policy: Policy
    layout: Layout

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> Dense:
            return Dense(
                features, self.policy.compute, self.policy.param, use_bias=False, name=name
            )

        gate = jax.nn.silu(dense(self.config.ffw, "gate_proj")(x))
        wide = gate * dense(self.config.ffw, "up_proj")(x)
        return dense(self.config.width, "down_proj")(self.layout.pin(wide, "rows", None, "mlp"))


class Block(nn.Module):
    """Pre-norm attention and MLP; returns (x, updated cache of this layer or None)."""

    config: DecoderConfig
    policy: Policy
    layout: Layout

    @nn.compact
    def __call__(self, x, angles, mask, cache, cache_index):
        # The residual stream stays where its rows are, so weights are gathered and not activations.
        pin = lambda x: self.layout.pin(x, "rows", None, None)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(self.config.norm_eps, self.policy.compute, self.policy.param, name=name)

        x = pin(x)
        attention = Attention(self.config, self.policy, self.layout, name="attn")
        y, cache = attention(norm("attn_norm")(x), angles, mask, cache, cache_index)
        x = pin(x + y)
        x = x + MLP(self.config, self.policy, self.layout, name="mlp")(norm("mlp_norm")(x))
        return pin(x), cache


class Decoder(nn.Module):
    """Embeddings in, hidden states out; text ids and logits through `embed_text` and `logits`.

    Attributes:
      config: geometry.
      policy: dtypes.
      scan_layers: parameters stacked under `layers` instead of `layers_0`, `layers_1`, ...
      remat: see `blocks.remat_block`.
      layout: of the activations on devices.
    """

    config: DecoderConfig
    policy: Policy = Policy()
    scan_layers: bool = False
    remat: str = "none"
    layout: Layout = Layout()

    def setup(self):
        config, policy = self.config, self.policy
        self.embed = Embed(
            config.vocab_size,
            config.width,
            policy.compute,
            policy.param,
        )
        self.layers = make_blocks(
            Block,
            config.layers,
            scan=self.scan_layers,
            remat=self.remat,
            broadcast=4,
            config=config,
            policy=policy,
            layout=self.layout,
        )
        self.final_norm = RMSNorm(config.norm_eps, policy.compute, policy.param)
        self.lm_head = Dense(
            config.vocab_size,
            policy.compute,
            policy.param,
            use_bias=False,
            out_dtype=jnp.float32,
        )

    def embed_text(self, ids: jax.Array) -> jax.Array:
        """Token ids [...] -> [..., D]."""
        return self.embed(ids)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states after the final norm [..., D] -> float32 [..., V]."""
        return self.lm_head(hidden)

    def __call__(
        self,
        embeds: jax.Array,
        positions: jax.Array,
        mask: jax.Array | Segments,
        cache: Cache | None = None,
        cache_index: jax.Array | int | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs all blocks.

        Args:
          embeds: [B, T, D].
          positions: [B, T] integer rotary positions.
          mask: [B, T, S] bool, True = attend; S = T without a cache. `Segments` for packed rows.
          cache: keys and values so far (`init_cache`); needs unrolled layers.
          cache_index: scalar, where in the cache this call's first key goes.

        Returns:
          Hidden states after the final norm [B, T, D], and the updated cache (None without one).

        Raises:
          ValueError: a cache was given to scanned layers (use `unstack_layers`).
        """
        x = embeds.astype(self.policy.compute)
        angles = rotary(positions, self.config.head_dim, self.config.rope_theta)
        if self.scan_layers:
            if cache is not None:
                raise ValueError("a KV cache needs unrolled layers: see models.unstack_layers")
            x, _ = self.layers(x, angles, mask, None, None)
            return self.final_norm(x), None
        updated = []
        for i, layer in enumerate(self.layers):
            x, layer_cache = layer(
                x, angles, mask, None if cache is None else cache[i], cache_index
            )
            updated.append(layer_cache)
        return self.final_norm(x), None if cache is None else tuple(updated)
