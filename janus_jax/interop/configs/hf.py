"""The `config.json` of transformers' `JanusForConditionalGeneration` to and from a `JanusConfig`.

Source: `transformers.models.janus.configuration_janus` and `transformers.LlamaConfig`; what a file leaves
out has the defaults there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus_jax.config import VQ_16, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.errors import UserError
from janus_jax.interop.configs.llama import decoder_from_llama, decoder_to_llama

_VISION = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
    "mlp_ratio": 4,
}
_VQ = {
    "embed_dim": 8,
    "num_embeddings": 16384,
    "latent_channels": 256,
    "base_channels": 128,
    "channel_multiplier": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
}
# What this implementation does not do; any other value would silently compute something else.
_VISION_FIXED = {
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "attention_bias": True,
    "use_qk_norm": False,
    "depth": 2,
}
_VQ_FIXED = {
    "double_latent": False,
    "in_channels": 3,
    "out_channels": 3,
    "num_hidden_layers": 2,
    "hidden_act": "gelu",
}


def config_from_hf(
    hf: Mapping[str, Any], *, scan_layers: bool = False, name: str = "janus"
) -> JanusConfig:
    """Reads the architecture out of a `config.json` with `model_type` "janus".

    Args:
      hf: the parsed file.
      scan_layers: layout of the decoder and SigLIP blocks, see `JanusConfig`.
      name: name of the result; the file does not hold one.

    Raises:
      UserError: a section is absent, or the file asks for something that this implementation does not do.
    """
    if not isinstance(hf, Mapping) or hf.get("model_type") != "janus":
        raise UserError(
            "config.json is no Janus config of transformers: model_type must be 'janus'"
        )
    vision = _values(hf, "vision_config", _VISION, _VISION_FIXED)
    vq = _values(hf, "vq_config", _VQ, _VQ_FIXED)
    if vision["mlp_ratio"] != int(vision["mlp_ratio"]):
        raise UserError("config.json vision_config: mlp_ratio must be a whole number")
    siglip = SigLIPConfig.from_dict(
        {
            "image_size": _side(vision["image_size"], "image_size"),
            "patch_size": _side(vision["patch_size"], "patch_size"),
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "heads": vision["num_attention_heads"],
            "mlp_ratio": int(vision["mlp_ratio"]),
        }
    )
    downsample = 2 ** (len(vq["channel_multiplier"]) - 1)
    tokenizer = VQConfig.from_dict(
        {
            # transformers sets the codes along one side to the patches along one side.
            "image_size": siglip.grid * downsample,
            "codebook_size": vq["num_embeddings"],
            "codebook_dim": vq["embed_dim"],
            "z_channels": vq["latent_channels"],
            "ch": vq["base_channels"],
            "ch_mult": list(vq["channel_multiplier"]),
            "num_res_blocks": vq["num_res_blocks"],
        }
    )
    text = hf.get("text_config")
    if not isinstance(text, Mapping):
        raise UserError("config.json lacks the section text_config")
    return JanusConfig(
        name, siglip, tokenizer, decoder_from_llama(text, "text_config"), scan_layers
    )


def config_to_hf(config: JanusConfig, image_token_id: int, dtype: str) -> dict[str, Any]:
    """The `config.json` that makes transformers build this model.

    Args:
      config: the architecture.
      image_token_id: id of `<image_placeholder>`.
      dtype: of the weights, "float32" or "bfloat16".

    Raises:
      UserError: transformers cannot build it.
    """
    check_vq(config, "transformers")
    siglip, vq, decoder = config.siglip, config.vq, config.decoder
    if vq.grid != siglip.grid:
        raise UserError(
            f"transformers cannot build {config.name}: it wants as many codes as patches along a side, "
            f"not {vq.grid} and {siglip.grid}"
        )
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "dtype": dtype,
        "image_token_id": image_token_id,
        "tie_word_embeddings": False,
        "text_config": decoder_to_llama(decoder) | {"tie_word_embeddings": False},
        "vision_config": {
            "model_type": "janus_vision_model",
            "hidden_size": siglip.width,
            "num_hidden_layers": siglip.layers,
            "num_attention_heads": siglip.heads,
            "image_size": siglip.image_size,
            "patch_size": siglip.patch_size,
            "mlp_ratio": float(siglip.mlp_ratio),
            "num_image_tokens": siglip.num_patches,
            "projection_dim": decoder.width,
            **_VISION_FIXED,
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "embed_dim": vq.codebook_dim,
            "num_embeddings": vq.codebook_size,
            "latent_channels": vq.z_channels,
            "base_channels": vq.ch,
            "channel_multiplier": list(vq.ch_mult),
            "num_res_blocks": vq.num_res_blocks,
            "num_patches": vq.grid,
            "projection_dim": decoder.width,
            "image_token_embed_dim": decoder.width,
            **_VQ_FIXED,
        },
    }


def check_vq(config: JanusConfig, where: str) -> None:
    """Raises a UserError if the image tokenizer has parts that the PyTorch models lack."""
    for field in ("norm_groups", "patch_size"):
        value, wanted = getattr(config.vq, field), getattr(VQ_16, field)
        if value != wanted:
            raise UserError(
                f"{where} cannot build {config.name}: vq.{field} must be {wanted}, not {value}"
            )


def _values(
    hf: Mapping[str, Any], section: str, defaults: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    values = hf.get(section)
    if not isinstance(values, Mapping):
        raise UserError(f"config.json lacks the section {section}")
    for key, value in fixed.items():
        if values.get(key, value) != value:
            raise UserError(f"config.json {section}: {key} = {values[key]!r} is not supported")
    return {key: values.get(key, default) for key, default in defaults.items()}


def _side(value: Any, key: str) -> int:
    sides = value if isinstance(value, list) else [value]
    if len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise UserError(f"config.json vision_config: {key} must be one number, not {value!r}")
    return sides[0]
