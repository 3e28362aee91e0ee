"""Converting whole checkpoints: formats, round trips, and everything that must be refused."""

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from converting import GOLDEN, SMALL, TABLES, convert, random_state, same, write_hf
from safetensors.numpy import load_file, save_file

from janus_jax.checkpoints import load_model
from janus_jax.config import JANUS_PRO_1B, JANUS_PRO_7B, JANUS_TINY
from janus_jax.errors import UserError
from janus_jax.interop import HF, OFFICIAL, config_from_official, params_from_torch
from janus_jax.interop.configs.hf import config_from_hf, config_to_hf
from janus_jax.interop.configs.official import config_to_official
from janus_jax.interop.conversion.convert import expected_shapes, flatten, make_plan
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import summary

# Names and configs


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("config", [JANUS_PRO_1B, JANUS_PRO_7B], ids=lambda c: c.name)
def test_the_table_is_a_bijection(table, config):
    shapes = expected_shapes(config)
    names = {}
    for path, shape in shapes.items():
        slots = table.to_torch(path)
        assert [s.part for s in slots] == [(k, len(slots)) for k in range(len(slots))]
        for slot in slots:
            assert slot.name not in names
            names[slot.name] = slot.torch_shape(shape)
            assert table.to_native(slot.name) == dataclasses.replace(slot, name=path)
    plan = make_plan(names, config, table)
    assert not plan.problems and set(plan.sources) == set(shapes)


@pytest.mark.parametrize("config", [JANUS_PRO_1B, JANUS_PRO_7B, SMALL], ids=lambda c: c.name)
def test_configs_survive_both_formats(config):
    config = config.replace(scan_layers=False)
    back = config_from_official(config_to_official(config, "bfloat16"), name=config.name)
    assert back == config
    assert config_from_hf(config_to_hf(config, 7, "bfloat16"), name=config.name) == config


def test_known_geometry_is_named_and_unknown_is_spelled_out():
    vision = config_to_official(JANUS_PRO_7B, "bfloat16")["vision_config"]["params"]
    assert vision == {
        "image_size": 384,
        "model_name": "siglip_large_patch16_384",
        "select_feature": "same",
        "select_layer": -1,
    }
    assert config_to_official(SMALL, "float32")["vision_config"]["params"]["heads"] == 2


@pytest.mark.parametrize("write", [config_to_official, lambda c, d: config_to_hf(c, 7, d)])
def test_models_that_pytorch_cannot_build_are_refused(write):
    with pytest.raises(UserError, match=r"vq\.norm_groups must be 32, not 8"):
        write(JANUS_TINY, "float32")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "hidden_act", "gelu_pytorch_tanh"),
        ("vision_config", "use_qk_norm", True),
        ("vq_config", "double_latent", True),
        ("text_config", "rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
        ("text_config", "attention_bias", True),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "hidden_size", "wide"),
    ],
)
def test_unsupported_hf_settings_are_refused(section, key, value):
    hf = config_to_hf(SMALL, 7, "float32")
    hf[section][key] = value
    with pytest.raises(UserError, match=key):
        config_from_hf(hf)


# Round trips


@pytest.mark.heavy
def test_official_to_ours_and_back_is_bit_identical(official, tmp_path):
    native, back = tmp_path / "ours", tmp_path / "back"
    convert(official, native, "janus_jax")
    loaded = load_model(native)
    assert loaded.origin == {"from": str(official), "format": "official"}
    assert loaded.processor["template"] == "deepseek"
    state = load_file(official / "model.safetensors")
    wanted = params_from_torch(state, loaded.config)
    assert same(flatten(loaded.params), flatten(wanted))
    convert(native, back, "official")
    used = {k: v for k, v in state.items() if not OFFICIAL.is_dropped(k)}
    assert len(state) - len(used) == 14  # the pooling head and the statistic, nothing else
    assert same(load_file(back / "model.safetensors"), used)
    assert {p.name for p in back.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.heavy
def test_hf_to_official_to_hf_is_bit_identical(tmp_path, tokenizer):
    state = random_state(SMALL, HF)
    write_hf(tmp_path / "hf", state, SMALL, tokenizer)
    convert(tmp_path / "hf", tmp_path / "official", "official", shard_bytes=10**6)
    shards = sorted((tmp_path / "official").glob("model-*.safetensors"))
    assert len(shards) > 3  # read again through the index
    convert(tmp_path / "official", tmp_path / "back", "hf")
    assert same(load_file(tmp_path / "back" / "model.safetensors"), state)
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["generation_kwargs"]["boi_token_id"] == tokenizer.boi_id


@pytest.mark.torch
def test_transformers_computes_the_same_after_a_round_trip(tmp_path, tokenizer):
    import torch
    from transformers import JanusConfig as JanusConfig_hf
    from transformers import JanusForConditionalGeneration

    config = JanusConfig_hf.from_dict(config_to_hf(SMALL, tokenizer.image_id, "float32"))
    torch.manual_seed(0)
    original = JanusForConditionalGeneration(config).eval()
    original.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(tokenizer.to_json())
    convert(tmp_path / "hf", tmp_path / "ours", "janus_jax")
    convert(tmp_path / "ours", tmp_path / "back", "hf")
    back = JanusForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    ids = torch.arange(9, 29).reshape(2, 10)
    with torch.no_grad():
        wanted, found = (m(input_ids=ids).logits for m in (original, back))
        pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
        seen = [m.model.get_image_features(pixels).pooler_output for m in (original, back)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-5)
    assert wanted.std() > 0.01


@pytest.mark.torch
@pytest.mark.parametrize("shards", [1, 3])
def test_pickled_state_dicts_are_read_like_safetensors(official, tmp_path, shards):
    import torch

    state = load_file(official / "model.safetensors")
    (official / "model.safetensors").unlink()
    as_torch = lambda v: torch.from_numpy(v.view(np.int16)).view(torch.bfloat16)
    tensors = {
        k: as_torch(v) if v.dtype.itemsize == 2 else torch.from_numpy(v) for k, v in state.items()
    }
    if shards == 1:
        torch.save(tensors, official / "pytorch_model.bin")
    else:
        listed = {}
        for i in range(shards):
            name = f"pytorch_model-{i}.bin"
            part = dict(list(tensors.items())[i::shards])
            torch.save(part, official / name)
            listed |= dict.fromkeys(part, name)
        text = json.dumps({"weight_map": listed})
        (official / "pytorch_model.bin.index.json").write_text(text)
    convert(official, tmp_path / "ours", "janus_jax")
    loaded = load_model(tmp_path / "ours")
    wanted = params_from_torch(state, loaded.config)
    assert same(flatten(loaded.params), flatten(wanted))


def test_old_hf_names_are_understood(tmp_path, tokenizer):
    state = random_state(SMALL, HF)

    def old(name):
        name = name.replace("model.language_model.", "language_model.model.")
        name = name.replace("lm_head.", "language_model.lm_head.")
        return name if name.startswith("language_model.") else name.removeprefix("model.")

    assert not {old(k) for k in state} & set(state)
    write_hf(tmp_path / "old", {old(k): v for k, v in state.items()}, SMALL, tokenizer)
    convert(tmp_path / "old", tmp_path / "new", "hf")
    assert same(load_file(tmp_path / "new" / "model.safetensors"), state)


def test_the_summary_counts_every_parameter():
    rows = summary(open_source(GOLDEN).arrays)
    names = [name for name, *_ in rows]
    assert names[-1] == "total" and set(names[:-1]) == {
        *("siglip", "und_adaptor", "gen_embed", "gen_adaptor", "image_head", "decoder", "vq")
    }
    assert rows[-1][1] == sum(r[1] for r in rows[:-1]) == 1_418_091
    assert all(nbytes == 2 * count for _, count, nbytes in rows)


# What must be refused


def damage(directory, change):
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")


def test_all_problems_are_told_together(official, tmp_path):
    norm, embed = "language_model.model.norm.weight", "language_model.model.embed_tokens.weight"

    def change(state):
        state["surprise"] = state.pop("gen_embed.weight")
        state["aligner.layers.0.bias"] = state["aligner.layers.0.bias"][:-1]
        state[norm] = state[norm].copy()
        state[norm][3] = np.nan

    damage(official, change)
    with pytest.raises(UserError) as error:
        convert(official, tmp_path / "out", "janus_jax")
    for part in (
        "1 missing: gen_embed.weight",
        "1 unexpected: surprise",
        "1 mis-shaped: aligner.layers.0.bias is [63] but should be [64]",
        f"1 non-finite: {norm}",
    ):
        assert part in str(error.value)
    assert embed not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


@pytest.mark.heavy
@pytest.mark.parametrize("to", ["janus_jax", "official"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_while_writing(official, tmp_path, to, value):
    def change(state):
        state["gen_head.vision_head.bias"][7] = value

    damage(official, change)
    with pytest.raises(UserError, match=r"1 non-finite: gen_head\.vision_head\.bias"):
        convert(official, tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


@pytest.mark.heavy
def test_the_largest_numbers_are_finite(official, tmp_path):
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)

    def change(state):
        state["gen_head.vision_head.bias"][:2] = (largest, -largest)

    damage(official, change)
    convert(official, tmp_path / "out", "janus_jax")


def test_the_same_tensor_under_two_names_is_refused(tmp_path, tokenizer):
    state = random_state(SMALL, HF)
    state["aligner.fc1.bias"] = state["model.aligner.fc1.bias"]
    write_hf(tmp_path / "hf", state, SMALL, tokenizer)
    with pytest.raises(UserError, match="1 duplicated: "):
        open_source(tmp_path / "hf")


def test_a_config_of_the_other_format_is_explained(official, tokenizer, tmp_path):
    write_hf(tmp_path / "hf", random_state(SMALL, HF), SMALL, tokenizer)
    shutil.copyfile(official / "config.json", tmp_path / "hf" / "config.json")
    with pytest.raises(UserError, match="official format, but the weights have hf names"):
        open_source(tmp_path / "hf")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("processor_config.json", '{"sft_format": "llama"}', "sft_format"),
        ("processor_config.json", '{"num_image_tokens": 576}', "num_image_tokens"),
        ("preprocessor_config.json", '{"image_mean": [0.48, 0.46, 0.41]}', "image_mean"),
        ("preprocessor_config.json", '{"image_size": 384}', "image_size"),
        ("preprocessor_config.json", "[]", "one JSON object"),
        ("processor_config.json", "{", "not valid JSON"),
        ("tokenizer.json", "{}", "tokenizer.json"),
    ],
)
def test_impossible_processors_are_refused(official, file, text, message):
    (official / file).write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(official).processor()


@pytest.mark.parametrize("token", ["<｜▁pad▁｜>", "<begin_of_image>", "<end_of_image>"])
def test_a_tokenizer_without_a_special_token_is_refused_by_its_name(official, tokenizer, token):
    (official / "tokenizer.json").write_text(tokenizer.to_json().replace(token, "<other>"))
    with pytest.raises(UserError, match=f"no token '{token}'"):
        open_source(official).processor()
