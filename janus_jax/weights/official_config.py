"""The official `config.json` to a `JanusConfig`.

The released files name a vision tower and a tokenizer and leave their geometry to code; a file may
instead, or in addition, spell the geometry out in extra keys (`width`, `layers`, `heads`,
`patch_size`, `mlp_ratio` of the tower; `ch`, `ch_mult`, `num_res_blocks`, `z_channels` of the
tokenizer).
Sources: `janus/models/{modeling_vlm,clip_encoder,siglip_vit,vq_model}.py`,
`transformers.LlamaConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus_jax.config import (
    SIGLIP_LARGE_384,
    VQ_16,
    DecoderConfig,
    JanusConfig,
    SigLIPConfig,
    VQConfig,
)
from janus_jax.errors import UserError, nearest

SIGLIP_MODELS: dict[str, SigLIPConfig] = {
    "siglip_large_patch16_384": SIGLIP_LARGE_384,
}
VQ_MODELS: dict[str, VQConfig] = {"VQ-16": VQ_16}

# transformers.LlamaConfig: the releases leave out what equals these.
_LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
# What this implementation does not do; any other value would silently compute something else.
_LLAMA_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}


def config_from_official(
    official: Mapping[str, Any], *, scan_layers: bool = False, name: str = "janus"
) -> JanusConfig:
    """Reads the architecture out of an official `config.json`.

    Args:
      official: the parsed file.
      scan_layers: layout of the decoder and SigLIP blocks, see `JanusConfig`.
      name: name of the result; the file does not hold one.

    Raises:
      UserError: a section is absent, a model name is unknown and its geometry not spelled out,
        parts do not fit together, or the file asks for something that this implementation does not
        do.
    """
    if not isinstance(official, Mapping) or official.get("model_type") != "multi_modality":
        raise UserError(
            "config.json is not an official Janus config: its model_type must be 'multi_modality'"
        )
    siglip = _siglip(_params(official, "vision_config"))
    decoder = _decoder(_section(official, "language_config"))
    vq = _vq(_section(official, "gen_vision_config"), siglip.image_size)
    _check_adaptor(official, "aligner_config", siglip.width, decoder.width)
    _check_adaptor(official, "gen_aligner_config", vq.codebook_dim, decoder.width)
    _check_image_head(_params(official, "gen_head_config"), vq, decoder)
    return JanusConfig(name, siglip, vq, decoder, scan_layers)


def _section(official: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = official.get(name)
    if not isinstance(section, Mapping):
        raise UserError(f"config.json lacks the section {name}")
    return section


def _params(official: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _section(_section(official, name), "params")


def _geometry(
    values: Mapping[str, Any], known: Any, keys: tuple[str, ...], where: str, names: Any, name: str
) -> dict[str, Any]:
    """The `keys` from the explicit values, else from the known model."""
    geometry = {key: values.get(key, getattr(known, key, None)) for key in keys}
    missing = [key for key, value in geometry.items() if value is None]
    if missing:
        raise UserError(
            f"config.json {where} names the unknown model {name!r} and does not spell out "
            f"{', '.join(missing)}.{nearest(name, names)}"
        )
    return geometry


def _integer(values: Mapping[str, Any], key: str, default: int | None, where: str) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"config.json {where}: {key} must be an integer, not {value!r}")
    return value


def _siglip(params: Mapping[str, Any]) -> SigLIPConfig:
    name = str(params.get("model_name", ""))
    keys = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio")
    geometry = _geometry(
        params, SIGLIP_MODELS.get(name), keys, "vision_config", SIGLIP_MODELS, name
    )
    if params.get("select_feature", "patch") != "same":
        raise UserError("config.json vision_config: only select_feature 'same' is supported")
    # `create_siglip_vit`: a negative layer counts from the end and the tower stops there.
    select = _integer(params, "select_layer", -2, "vision_config")
    layers = _integer(geometry, "layers", None, "vision_config")
    geometry["layers"] = min(layers, layers + select + 1 if select <= 0 else select)
    return SigLIPConfig.from_dict(geometry)


def _vq(section: Mapping[str, Any], image_size: int) -> VQConfig:
    name = str(section.get("cls", ""))
    params = _section(section, "params")
    keys = ("ch", "ch_mult", "num_res_blocks", "z_channels")
    geometry = _geometry(params, VQ_MODELS.get(name), keys, "gen_vision_config", VQ_MODELS, name)
    return VQConfig.from_dict(
        {
            **geometry,
            "image_size": params.get("image_size", image_size),
            "codebook_size": params.get("image_token_size", 16384),
            "codebook_dim": params.get("n_embed", 8),
        }
    )


def _decoder(section: Mapping[str, Any]) -> DecoderConfig:
    for key, value in _LLAMA_FIXED.items():
        if section.get(key, value) != value:
            raise UserError(
                f"config.json language_config: {key} = {section[key]!r} is not supported"
            )
    values = {key: section.get(key, default) for key, default in _LLAMA_DEFAULTS.items()}
    width = _integer(values, "hidden_size", None, "language_config")
    heads = _integer(values, "num_attention_heads", None, "language_config")
    if heads < 1:
        raise UserError("config.json language_config: num_attention_heads must be positive")
    return DecoderConfig.from_dict(
        {
            "vocab_size": values["vocab_size"],
            "width": width,
            "ffw": values["intermediate_size"],
            "layers": values["num_hidden_layers"],
            "heads": heads,
            "kv_heads": section.get("num_key_value_heads") or heads,
            "head_dim": section.get("head_dim") or width // heads,
            "rope_theta": values["rope_theta"],
            "norm_eps": values["rms_norm_eps"],
            "max_position": values["max_position_embeddings"],
        }
    )


def _check_adaptor(official: Mapping[str, Any], name: str, width_in: int, width_out: int) -> None:
    params = _params(official, name)
    want = {
        "projector_type": "mlp_gelu",
        "depth": 2,
        "input_dim": width_in,
        "n_embed": width_out,
    }
    for key, value in want.items():
        if params.get(key, value) != value:
            raise UserError(f"config.json {name}: {key} must be {value!r}, not {params[key]!r}")


def _check_image_head(params: Mapping[str, Any], vq: VQConfig, decoder: DecoderConfig) -> None:
    want = {
        "image_token_size": vq.codebook_size,
        "image_token_embed": decoder.width,
        "n_embed": decoder.width,
    }
    for key, value in want.items():
        if params.get(key, value) != value:
            raise UserError(
                f"config.json gen_head_config: {key} must be {value}, not {params[key]}"
            )
