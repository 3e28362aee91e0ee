"""Products of the decoder, of SigLIP, and of the small MLPs around them, for one packed batch."""

from __future__ import annotations

import contextlib

from janus_jax.checkpoints.model_dir import EXTRAS
from janus_jax.config import DecoderConfig, JanusConfig, SigLIPConfig
from janus_jax.training.content import Content
from janus_jax.training.flops.products import Products


def janus(products: Products, config: JanusConfig, batch: Content, und: bool, gen: bool) -> None:
    """`JanusModel.target_log_probs`, without the image tokenizer.

    Args:
      und, gen: whether batches have room for pictures to understand, to generate, so that what embeds them
        is part of the program.
    """
    width, codes = config.decoder.width, config.vq.num_codes
    needs = products.trains("decoder/embed")
    if und:
        features = siglip(products, config, batch.und_images)
        rows = batch.und_images * config.siglip.num_patches
        needs |= _adaptor(products, "und_adaptor", config.siglip.width, width, rows, features)
    if gen:
        rows = batch.gen_images * (codes - 1)  # the last code feeds nothing
        table = products.trains("gen_embed")
        needs |= _adaptor(products, "gen_adaptor", config.vq.codebook_dim, width, rows, table)
    hidden = decoder(products, config, batch, needs)
    products.dense("decoder/lm_head", width, config.decoder.vocab_size, batch.targets, hidden)
    if gen:
        rows = batch.gen_images * codes
        inner = products.dense("image_head/proj", width, width, rows, hidden)
        products.dense("image_head/head", width, config.vq.codebook_size, rows, inner)


def decoder(products: Products, config: JanusConfig, batch: Content, needs: bool) -> bool:
    """All layers, up to the final norm."""
    width = config.decoder.width
    for i in range(config.decoder.layers):
        path = "decoder/layers" if config.scan_layers else f"decoder/layers_{i}"
        with _again(products, path, config.decoder.ffw, width, batch.tokens, needs):
            needs = _decoder_layer(products, config.decoder, path, batch, needs)
    return needs or products.trains("decoder/final_norm")


def _decoder_layer(
    products: Products, config: DecoderConfig, path: str, batch: Content, needs: bool
) -> bool:
    width, heads = config.width, config.heads * config.head_dim
    few, n = config.kv_heads * config.head_dim, batch.tokens
    x = needs or products.trains(f"{path}/attn_norm")
    q = products.dense(f"{path}/attn/q_proj", width, heads, n, x)
    k = products.dense(f"{path}/attn/k_proj", width, few, n, x)
    v = products.dense(f"{path}/attn/v_proj", width, few, n, x)
    x = products.attention(heads, batch.pairs, q, k, v, f"{path}/attn/o_proj")
    needs |= products.dense(f"{path}/attn/o_proj", heads, width, n, x)
    x = needs or products.trains(f"{path}/mlp_norm")
    gate = products.dense(f"{path}/mlp/gate_proj", width, config.ffw, n, x)
    up = products.dense(f"{path}/mlp/up_proj", width, config.ffw, n, x)
    return products.dense(f"{path}/mlp/down_proj", config.ffw, width, n, gate or up) or needs


def siglip(products: Products, config: JanusConfig, images: float) -> bool:
    """The understanding encoder on pictures; attention sees all pairs of patches."""
    tower = config.siglip
    pixels = 3 * tower.patch_size**2
    needs = products.dense(
        "siglip/patch_embed", pixels, tower.width, images * tower.num_patches, False
    )
    needs |= products.trains("siglip/pos_embed")
    for i in range(tower.layers):
        path = "siglip/blocks" if config.scan_layers else f"siglip/blocks_{i}"
        inner, rows = tower.mlp_ratio * tower.width, images * tower.num_patches
        with _again(products, path, inner, tower.width, rows, needs):
            needs = _siglip_block(products, tower, path, images, needs)
    return needs or products.trains("siglip/norm")


def _siglip_block(
    products: Products, config: SigLIPConfig, path: str, images: float, needs: bool
) -> bool:
    width, n = config.width, images * config.num_patches
    x = needs or products.trains(f"{path}/norm1")
    qkv = products.dense(f"{path}/qkv", width, 3 * width, n, x)
    x = products.attention(width, n * config.num_patches, qkv, qkv, qkv, f"{path}/proj")
    needs |= products.dense(f"{path}/proj", width, width, n, x)
    x = needs or products.trains(f"{path}/norm2")
    x = products.dense(f"{path}/fc1", width, config.mlp_ratio * width, n, x)
    return products.dense(f"{path}/fc2", config.mlp_ratio * width, width, n, x) or needs


def pooling(
    products: Products, config: SigLIPConfig, embed_dim: int, images: float, needs: bool
) -> None:
    """SigLIP's attention pooling with one query, as stage 0 trains it (`objectives/siglip.py`)."""
    width, patches, path = config.width, config.num_patches, f"{EXTRAS}/pooling"
    attn = f"{path}/attention"
    q = products.dense(f"{attn}/query", width, width, images, products.trains(f"{path}/query"))
    k = products.dense(f"{attn}/key", width, width, images * patches, needs)
    v = products.dense(f"{attn}/value", width, width, images * patches, needs)
    x = products.attention(width, images * patches, q, k, v)
    x = products.dense(f"{attn}/out", width, width, images, x)
    inner = products.dense(f"{path}/up", width, 4 * width, images, x)
    x = products.dense(f"{path}/down", 4 * width, width, images, inner) or x
    products.dense(f"{path}/head", width, embed_dim, images, x)


def text_tower(products: Products, width: int, embed_dim: int, texts: float, length: float) -> None:
    """The text tower of stage 0, of one layer; padding counts as text."""
    path, rows = f"{EXTRAS}/text_tower", texts * length
    x = products.trains(path)
    q, k, v = (
        products.dense(f"{path}/attention_0/{name}", width, width, rows, x)
        for name in ("query", "key", "value")
    )
    products.attention(width, rows * length, q, k, v)
    products.dense(f"{path}/attention_0/out", width, width, rows, x)
    products.dense(f"{path}/up_0", width, 4 * width, rows, x)
    products.dense(f"{path}/down_0", 4 * width, width, rows, x)
    products.dense(f"{path}/head", width, embed_dim, texts, x)


def _adaptor(
    products: Products, path: str, inputs: int, width: int, rows: float, needs: bool
) -> bool:
    needs = products.dense(f"{path}/fc1", inputs, width, rows, needs)
    return products.dense(f"{path}/fc2", width, width, rows, needs)


def _again(
    products: Products, path: str, inputs: int, outputs: int, rows: float, needs: bool
) -> contextlib.AbstractContextManager[None]:
    """Around a block: counts what is computed again, where it has a backward pass at all.

    Args:
      inputs, outputs, rows: of the block's last product.
    """
    if needs or products.trains(path):
        return products.block(2.0 * inputs * outputs * rows)
    return contextlib.nullcontext()
