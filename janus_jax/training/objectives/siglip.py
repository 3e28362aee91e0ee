"""Stage 0: the understanding encoder, with SigLIP's sigmoid image-text loss.

Zhai et al. 2023 (arXiv 2303.15343), equation 1: every (picture, text) pair of a batch is a binary
question. The text tower is thrown away afterwards: Janus uses the picture tower alone.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from janus_jax.checkpoints.model_dir import EXTRAS
from janus_jax.models import JanusModel, Params
from janus_jax.pixels import to_float
from janus_jax.training.objectives.base import Batch, Metrics, Objective


class SigLIPObjective(Objective):
    """`siglip_loss`. Options: `text_length`, ids of a text, 64 by default."""

    def extra_params(self, model, key):
        return {EXTRAS: init_heads(model, key, self.options.get("text_length", 64))}

    def loss(self, model, params, batch, phase):
        loss, metrics = siglip_loss(model, params, batch, self.pad_id)
        return loss, (metrics, {})


class TextTower(nn.Module):
    """A small bidirectional transformer over ids, averaged: int32 [B, T] -> float32 [B, E]."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int

    @nn.compact
    def __call__(self, ids: jax.Array, used: jax.Array) -> jax.Array:
        """`used` bool [B, T] marks the ids that are not padding."""
        x = nn.Embed(self.vocab_size, self.width, name="embed")(ids)
        scale = nn.initializers.normal(0.02)
        x = x + self.param("positions", scale, (ids.shape[1], self.width))
        mask = nn.make_attention_mask(used, used)
        for i in range(self.layers):
            y = nn.LayerNorm(name=f"norm1_{i}")(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{i}")(y, mask=mask)
            y = nn.LayerNorm(name=f"norm2_{i}")(x)
            y = nn.Dense(4 * self.width, name=f"up_{i}")(y)
            x = x + nn.Dense(self.width, name=f"down_{i}")(nn.gelu(y))
        return nn.Dense(self.embed_dim, name="head")(_mean(nn.LayerNorm(name="norm")(x), used))


class PoolingHead(nn.Module):
    """SigLIP's attention pooling, one learnt query: [B, P, D] -> [B, E].

    The MAP head of Zhai et al. 2023. Janus drops it (`attn_pool` of the official checkpoints) and reads the
    patches.

    Attributes:
      heads: attention heads; divides D.
      embed_dim: E, the size in which pictures and texts are compared.
    """

    heads: int
    embed_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        query = self.param("query", nn.initializers.normal(width**-0.5), (1, 1, width))
        query = jnp.broadcast_to(query, (x.shape[0], 1, width))
        y = nn.MultiHeadDotProductAttention(self.heads, name="attention")(query, x)
        z = nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm")(y))
        y = y + nn.Dense(width, name="down")(nn.gelu(z))
        return nn.Dense(self.embed_dim, name="head")(y[:, 0])


def _mean(x: jax.Array, used: jax.Array) -> jax.Array:
    weights = used.astype(x.dtype)[..., None]
    return jnp.sum(x * weights, 1) / jnp.maximum(jnp.sum(weights, 1), 1.0)


def init_heads(model: JanusModel, key: jax.Array, text_length: int, embed_dim: int = 128) -> Params:
    """Parameters of what only this loss needs: text tower, pooling head, temperature and bias."""
    tower, pooling = _tower(model, embed_dim), _pooling(model, embed_dim)
    keys = jax.random.split(key)
    ids = jnp.zeros((1, text_length), jnp.int32)
    width = model.config.siglip.width
    return {
        "text_tower": tower.init(keys[0], ids, ids == 0)["params"],
        "pooling": pooling.init(keys[1], jnp.zeros((1, 1, width)))["params"],
        # log(10) and -10: the paper's start, so that the many negative pairs do not swamp the loss.
        "log_scale": jnp.log(jnp.float32(10.0)),
        "bias": jnp.float32(-10.0),
    }


def siglip_loss(
    model: JanusModel, params: Params, batch: Batch, pad_id: int
) -> tuple[jax.Array, Metrics]:
    """Sigmoid loss of a batch: image uint8 [B, h, w, 3], text int32 [B, T] padded with `pad_id`.

    Returns:
      (loss, metrics): `loss` and `accuracy`, the share of pictures that find their text in the batch.
    """
    heads = params[EXTRAS]
    features = model.apply({"params": params}, to_float(batch["image"]), method="siglip_features")
    embed_dim = heads["pooling"]["head"]["kernel"].shape[-1]
    pooling, tower = _pooling(model, embed_dim), _tower(model, embed_dim)
    image = pooling.apply({"params": heads["pooling"]}, features.astype(jnp.float32))
    text = tower.apply({"params": heads["text_tower"]}, batch["text"], batch["text"] != pad_id)
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    logits = unit(image) @ unit(text).T * jnp.exp(heads["log_scale"]) + heads["bias"]
    labels = jnp.eye(logits.shape[0])
    loss = jnp.mean(jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1))
    found = jnp.argmax(logits, axis=-1) == jnp.arange(logits.shape[0])
    return loss, {
        "loss": loss,
        "accuracy": jnp.mean(found.astype(jnp.float32)),
        "tokens": jnp.float32(features.shape[0] * features.shape[1]),
    }


def _pooling(model: JanusModel, embed_dim: int) -> PoolingHead:
    return PoolingHead(model.config.siglip.heads, embed_dim)


def _tower(model: JanusModel, embed_dim: int) -> TextTower:
    width = model.config.siglip.width
    return TextTower(
        model.config.decoder.vocab_size, width, 1, model.config.siglip.heads, embed_dim
    )
