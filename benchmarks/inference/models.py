"""The models that benchmarks take: a tiny one and the presets, and their checkpoints of random weights."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.conversion.random_checkpoint import tensors
from janus_jax.config import PRESETS, DecoderConfig, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.interop.configs.official import config_to_official
from janus_jax.processing import build_word_tokenizer

# 64 codes; transformers wants as many codes as patches.
TINY = JanusConfig(
    "tiny",
    SigLIPConfig(image_size=128, patch_size=16, width=32, layers=1, heads=2),
    VQConfig(image_size=128, codebook_size=64, z_channels=32, ch=32, num_res_blocks=1),
    DecoderConfig(vocab_size=96, width=64, ffw=160, layers=3, heads=4, kv_heads=2, head_dim=32),
)
MODELS = {"tiny": TINY} | {
    name: c for name, c in PRESETS.items() if c.vq.grid == c.siglip.grid and c.vq.norm_groups == 32
}


def write_checkpoint(config: JanusConfig, directory: Path) -> None:
    """Random bfloat16 weights in the official format, as `benchmarks.conversion.random_checkpoint` writes them."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True)
    save_file(dict(tensors(config, seed=0)), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config_to_official(config, "bfloat16")))
    tokenizer = build_word_tokenizer("a red cat what is it ?".split())
    (directory / "tokenizer.json").write_text(tokenizer.to_json())


def shrink(config: JanusConfig, layers: int | None) -> JanusConfig:
    """The same with fewer layers, unrolled."""
    config = config.replace(scan_layers=False)
    if layers is None:
        return config
    siglip = config.siglip.replace(layers=min(layers, config.siglip.layers))
    return config.replace(decoder=config.decoder.replace(layers=layers), siglip=siglip)
