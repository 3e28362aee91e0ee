"""Architecture configs: presets, dict round trips, refusals, and the official config.json."""

import copy
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from janus_jax.config import (
    JANUS_PRO_1B,
    JANUS_PRO_7B,
    JANUS_TINY,
    PRESETS,
    DecoderConfig,
    JanusConfig,
    Policy,
    SigLIPConfig,
    VQConfig,
)
from janus_jax.errors import UserError
from janus_jax.interop import config_from_official

OFFICIAL_TINY = Path(__file__).parent / "data" / "golden" / "official_tiny" / "config.json"

# The shape of the released Janus-Pro-7B file: model names instead of geometry, LLaMA defaults left
# out.
OFFICIAL_7B = {
    "model_type": "multi_modality",
    "vision_config": {
        "cls": "CLIPVisionTower",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
    "aligner_config": {
        "params": {"depth": 2, "input_dim": 1024, "n_embed": 4096, "projector_type": "mlp_gelu"}
    },
    "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
    "gen_aligner_config": {
        "params": {"depth": 2, "input_dim": 8, "n_embed": 4096, "projector_type": "mlp_gelu"}
    },
    "gen_head_config": {
        "params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096}
    },
    "language_config": {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 30,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
}


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_dict_round_trip_through_json(config):
    assert JanusConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_geometry_of_the_presets():
    assert (JANUS_PRO_1B.siglip.num_patches, JANUS_PRO_1B.vq.num_codes) == (576, 576)
    assert JANUS_PRO_1B.vq.downsample == 16
    assert (JANUS_TINY.siglip.num_patches, JANUS_TINY.vq.num_codes) == (9, 36)
    assert all(name == config.name for name, config in PRESETS.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wdith": 3}, "no field 'wdith'. Did you mean 'width'?"),
        ({"width": "wide"}, "DecoderConfig.width must be of type int, not 'wide'"),
        ({"width": True}, "must be of type int"),
        ({"layers": 0}, "DecoderConfig.layers must be positive"),
        ({"kv_heads": 3}, "kv_heads 3 does not divide heads 4"),
        ({"head_dim": 7}, "must be even"),
    ],
)
def test_bad_decoder_fields_are_refused(change, message):
    with pytest.raises(UserError) as error:
        DecoderConfig.from_dict({**JANUS_TINY.decoder.to_dict(), **change})
    assert message in str(error.value)


def test_missing_fields_are_listed():
    with pytest.raises(UserError, match=r"JanusConfig.siglip lacks the field\(s\) width, layers"):
        JanusConfig.from_dict(
            {
                **JANUS_TINY.to_dict(),
                "siglip": {"image_size": 48, "patch_size": 16, "heads": 4},
            }
        )


def test_geometry_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="does not divide image_size"):
        SigLIPConfig(image_size=50, patch_size=16, width=64, layers=1, heads=4)
    with pytest.raises(UserError, match="not a multiple of the downsampling 16"):
        VQConfig(image_size=40)
    with pytest.raises(UserError, match="does not divide 48 channels"):
        VQConfig(image_size=16, ch=48)
    with pytest.raises(UserError, match="conv_impl"):
        VQConfig(image_size=16, conv_impl="winograd")


def test_policy():
    policy = Policy(compute_dtype="bfloat16")
    assert (policy.param, policy.compute) == (jnp.float32, jnp.bfloat16)
    with pytest.raises(UserError, match="compute_dtype must be one of"):
        Policy(compute_dtype="int8")


def test_official_config_with_model_names():
    config = config_from_official(OFFICIAL_7B, name=JANUS_PRO_7B.name, scan_layers=True)
    assert config == JANUS_PRO_7B


def test_official_config_with_explicit_geometry():
    config = config_from_official(json.loads(OFFICIAL_TINY.read_text()))
    assert config.siglip == SigLIPConfig(64, 16, 64, 2, 4)
    assert config.vq == VQConfig(64, 256, 8, 32, 32, (1, 1, 2), 2)
    assert config.decoder == DecoderConfig(512, 64, 160, 2, 4, 4, 16, max_position=1024)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "llama", "must be 'multi_modality'"),
        ("aligner_config", None, "lacks the section aligner_config"),
        (
            "vision_config.params.model_name",
            "siglip_large_patch16_38",
            "Did you mean 'siglip_large",
        ),
        ("gen_vision_config.cls", "VQ-8", "does not spell out ch, ch_mult"),
        ("vision_config.params.select_feature", "patch", "select_feature"),
        ("aligner_config.params.depth", 3, "depth must be 2, not 3"),
        ("gen_head_config.params.n_embed", 2048, "n_embed must be 4096, not 2048"),
        ("language_config.tie_word_embeddings", True, "tie_word_embeddings = True is not supp"),
        ("language_config.rope_scaling", {"type": "linear"}, "rope_scaling"),
        ("language_config.hidden_size", "4096", "hidden_size must be an integer"),
    ],
)
def test_official_configs_that_are_refused(path, value, message):
    official = copy.deepcopy(OFFICIAL_7B)
    *parents, leaf = path.split(".")
    section = official
    for parent in parents:
        section = section[parent]
    section[leaf] = value
    with pytest.raises(UserError) as error:
        config_from_official(official)
    assert message in str(error.value)


def test_select_layer_shortens_the_tower():
    official = copy.deepcopy(OFFICIAL_7B)
    official["vision_config"]["params"]["select_layer"] = -2
    assert config_from_official(official).siglip.layers == 23
