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
    JanusConfig,
    SigLIPConfig,
    VQConfig,
)
from janus_jax.errors import UserError, nearest
from janus_jax.interop.configs.hf import check_vq
from janus_jax.interop.configs.llama import decoder_from_llama, decoder_to_llama, integer

SIGLIP_MODELS: dict[str, SigLIPConfig] = {
    "siglip_large_patch16_384": SIGLIP_LARGE_384,
}
VQ_MODELS: dict[str, VQConfig] = {"VQ-16": VQ_16}


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
    decoder = decoder_from_llama(_section(official, "language_config"), "language_config")
    vq = _vq(_section(official, "gen_vision_config"), siglip.image_size)
    _check_adaptor(official, "aligner_config", siglip.width, decoder.width)
    _check_adaptor(official, "gen_aligner_config", vq.codebook_dim, decoder.width)
    _check_image_head(_params(official, "gen_head_config"), vq, decoder.width)
    return JanusConfig(name, siglip, vq, decoder, scan_layers)


def config_to_official(config: JanusConfig, dtype: str) -> dict[str, Any]:
    """The official `config.json` for this model.

    A geometry that the official code knows by name is named; any other is spelled out in the extra keys
    that `config_from_official` reads.

    Args:
      config: the architecture.
      dtype: of the weights, "float32" or "bfloat16".

    Raises:
      UserError: the official code has no such image tokenizer.
    """
    check_vq(config, "the official code")
    siglip, vq, decoder = config.siglip, config.vq, config.decoder
    vision: dict[str, Any] = {
        "image_size": siglip.image_size,
        "model_name": _name_of(siglip, SIGLIP_MODELS),
        "select_feature": "same",
        "select_layer": -1,
    }
    if vision["model_name"] not in SIGLIP_MODELS:
        fields = ("width", "layers", "heads", "patch_size", "mlp_ratio")
        vision |= {field: getattr(siglip, field) for field in fields}
    codes: dict[str, Any] = {"image_token_size": vq.codebook_size, "n_embed": vq.codebook_dim}
    known = _name_of(vq, VQ_MODELS)
    if known not in VQ_MODELS:
        fields = ("ch", "ch_mult", "num_res_blocks", "z_channels")
        codes |= {f: v for f, v in vq.to_dict().items() if f in fields}
        codes["image_size"] = vq.image_size
    adaptor = lambda width: {
        "depth": 2,
        "input_dim": width,
        "n_embed": decoder.width,
        "projector_type": "mlp_gelu",
    }
    part = lambda cls, kind, params: {"cls": cls, "model_type": kind, "params": params}
    head = {
        "image_token_embed": decoder.width,
        "image_token_size": vq.codebook_size,
        "n_embed": decoder.width,
    }
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "vision_config": part("CLIPVisionTower", "vision", vision),
        "aligner_config": part("MlpProjector", "aligner", adaptor(siglip.width)),
        "gen_vision_config": part(known, "gen_vision", codes),
        "gen_aligner_config": part("MlpProjector", "gen_aligner", adaptor(vq.codebook_dim)),
        "gen_head_config": part("vision_head", "gen_head", head),
        "language_config": decoder_to_llama(decoder) | {"torch_dtype": dtype},
    }


def _name_of(config: SigLIPConfig | VQConfig, models: Mapping[str, Any]) -> str:
    """What the official code calls this geometry, or a name it does not know."""
    ignored = {"conv_impl": "lax"} if isinstance(config, VQConfig) else {}
    for name, known in models.items():
        if config.replace(**ignored) == known:
            return name
    return f"custom_{config.image_size}"


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


def _siglip(params: Mapping[str, Any]) -> SigLIPConfig:
    name = str(params.get("model_name", ""))
    keys = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio")
    geometry = _geometry(
        params, SIGLIP_MODELS.get(name), keys, "vision_config", SIGLIP_MODELS, name
    )
    if params.get("select_feature", "patch") != "same":
        raise UserError("config.json vision_config: only select_feature 'same' is supported")
    # `create_siglip_vit`: a negative layer counts from the end and the tower stops there.
    select = integer(params, "select_layer", -2, "vision_config")
    layers = integer(geometry, "layers", None, "vision_config")
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


def _check_image_head(params: Mapping[str, Any], vq: VQConfig, width: int) -> None:
    want = {
        "image_token_size": vq.codebook_size,
        "image_token_embed": width,
        "n_embed": width,
    }
    for key, value in want.items():
        if params.get(key, value) != value:
            raise UserError(
                f"config.json gen_head_config: {key} must be {value}, not {params[key]}"
            )
