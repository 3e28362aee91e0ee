"""The language model's section of either `config.json`: fields of `transformers.LlamaConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus_jax.config import DecoderConfig
from janus_jax.errors import UserError

# transformers.LlamaConfig: the releases leave out what equals these.
_DEFAULTS = {
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
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}


def decoder_from_llama(section: Mapping[str, Any], where: str) -> DecoderConfig:
    """Reads a section.

    Args:
      section: the parsed section.
      where: its name, for messages.

    Raises:
      UserError: a value is impossible or asks for something that this implementation does not do.
    """
    section = _with_rope(section, where)
    for key, value in _FIXED.items():
        if section.get(key, value) != value:
            raise UserError(f"config.json {where}: {key} = {section[key]!r} is not supported")
    values = {key: section.get(key, default) for key, default in _DEFAULTS.items()}
    width = integer(values, "hidden_size", None, where)
    heads = integer(values, "num_attention_heads", None, where)
    if heads < 1:
        raise UserError(f"config.json {where}: num_attention_heads must be positive")
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


def decoder_to_llama(config: DecoderConfig) -> dict[str, Any]:
    """The section for `config`, complete, so that no reader's defaults matter."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffw,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def integer(values: Mapping[str, Any], key: str, default: int | None, where: str) -> int:
    """An integer field, or a UserError."""
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"config.json {where}: {key} must be an integer, not {value!r}")
    return value


def _with_rope(section: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Newer files keep the rotary base in `rope_parameters` or `rope_scaling`; no scaling is supported."""
    theta = section.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        rope = section.get(key)
        if rope is None:
            continue
        unscaled = {
            "rope_type": "default",
            "type": "default",
            "partial_rotary_factor": 1,
            "factor": 1,
        }
        if not isinstance(rope, Mapping) or any(
            value is not None and value != unscaled.get(name)
            for name, value in rope.items()
            if name != "rope_theta"
        ):
            raise UserError(f"config.json {where}: {key} = {rope!r} is not supported")
        # transformers prefers the base in here to the one beside.
        theta = theta if rope.get("rope_theta") is None else rope["rope_theta"]
    if section.get("partial_rotary_factor") not in (None, 1):
        value = section["partial_rotary_factor"]
        raise UserError(f"config.json {where}: partial_rotary_factor = {value!r} is not supported")
    return {**section, "rope_theta": _DEFAULTS["rope_theta"] if theta is None else theta}
