"""Converting whole checkpoints: formats, round trips, and everything that must be refused."""

import dataclasses
import errno
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import JanusConfig as JanusConfig_hf
from transformers import JanusForConditionalGeneration

import convert_torch_weights
from janus_jax.checkpoints import load_model
from janus_jax.config import JANUS_PRO_1B, JANUS_PRO_7B, JANUS_TINY, JanusConfig, VQConfig
from janus_jax.errors import UserError, run_main
from janus_jax.processing import build_word_tokenizer
from janus_jax.weights import HF, OFFICIAL, config_from_official, params_from_torch
from janus_jax.weights.convert import expected_shapes, leaves, make_plan
from janus_jax.weights.hf_config import config_from_hf, config_to_hf
from janus_jax.weights.official_config import config_to_official
from janus_jax.weights.source import open_source
from janus_jax.weights.write import summary, write_ours, write_torch

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"
TABLES = {table.key: table for table in (OFFICIAL, HF)}
# Small, and with what transformers fixes: 32 groups, as many codes as patches along a side.
SMALL = JanusConfig.from_dict(
    JANUS_TINY.to_dict()
    | {
        "name": "small",
        "siglip": JANUS_TINY.siglip.replace(image_size=64, width=32, heads=2).to_dict(),
        "vq": VQConfig(64, 64, 8, 32, 32, (1, 1, 1, 1, 1), 1).to_dict(),
    }
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer("a red cat".split())


@pytest.fixture
def official(tmp_path, tokenizer):
    """The golden checkpoint with a tokenizer, in a directory of its own."""
    directory = tmp_path / "official"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, directory / name)
    (directory / "tokenizer.json").write_text(tokenizer.to_json())
    return directory


def bits(array):
    array = np.asarray(array)
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def same(one, other):
    """Whether two flat states hold the same bits under the same names."""
    return set(one) == set(other) and all(
        one[k].dtype == other[k].dtype and np.array_equal(bits(one[k]), bits(other[k])) for k in one
    )


def convert(src, dst, to, **kwargs):
    source = open_source(src)
    processor, tokenizer = source.processor()
    if to == "janus_jax":
        write_ours(source, dst, processor, tokenizer)
    else:
        write_torch(source, dst, TABLES[to], processor, tokenizer, **kwargs)


def random_state(config, table, seed=0):
    """Random tensors of unit gain with the names and shapes of a format; the same on every machine."""
    rng = np.random.default_rng(seed)
    state = {}
    for path, shape in expected_shapes(config).items():
        for slot in table.to_torch(path):
            value = rng.standard_normal(slot.torch_shape(shape), np.float32)
            leaf = path.rsplit("/", 1)[-1]
            scale = np.prod(value.shape[1:]) ** -0.5 if leaf == "kernel" else 1.0
            scale = 0.1 if leaf in ("bias", "scale") else scale
            state[slot.name] = (value * scale + (leaf == "scale")).astype(np.float32)
    return state


def write_hf(directory, state, config, tokenizer):
    directory.mkdir()
    save_file(state, directory / "model.safetensors")
    text = json.dumps(config_to_hf(config, tokenizer.image_id, "float32"))
    (directory / "config.json").write_text(text)
    (directory / "tokenizer.json").write_text(tokenizer.to_json())


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
            assert table.to_ours(slot.name) == dataclasses.replace(slot, name=path)
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


def test_official_to_ours_and_back_is_bit_identical(official, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert(official, ours, "janus_jax")
    loaded = load_model(ours)
    assert loaded.origin == {"from": str(official), "format": "official"}
    assert loaded.processor["template"] == "deepseek"
    state = load_file(official / "model.safetensors")
    wanted = params_from_torch(state, loaded.config)
    assert same(dict(leaves(loaded.params)), dict(leaves(wanted)))
    convert(ours, back, "official")
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


def test_transformers_computes_the_same_after_a_round_trip(tmp_path, tokenizer):
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


@pytest.mark.parametrize("shards", [1, 3])
def test_pickled_state_dicts_are_read_like_safetensors(official, tmp_path, shards):
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
    assert same(dict(leaves(loaded.params)), dict(leaves(wanted)))


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


@pytest.mark.parametrize("to", ["janus_jax", "official"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_while_writing(official, tmp_path, to, value):
    def change(state):
        state["gen_head.vision_head.bias"][7] = value

    damage(official, change)
    with pytest.raises(UserError, match=r"1 non-finite: gen_head\.vision_head\.bias"):
        convert(official, tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


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


def test_a_taken_place_is_left_alone(official, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    for to in ("janus_jax", "official"):
        with pytest.raises(UserError, match="cannot write"):
            convert(official, tmp_path / "out", to)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("to", "writer", "error"),
    [
        # What safetensors and TensorStore raise on a full disk: text is all that tells.
        (
            "official",
            "save_file",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
        ("official", "save_file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        ("janus_jax", "save_lazily", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        (
            "janus_jax",
            "save_lazily",
            ValueError("RESOURCE_EXHAUSTED: No space left on device [28]"),
        ),
    ],
)
def test_a_full_disk_leaves_nothing_and_is_one_line(
    official, tmp_path, monkeypatch, capsys, to, writer, error
):
    def full(*args, **kwargs):
        (place,) = (path for path in tmp_path.iterdir() if path.name != "official")
        (place / "half").write_bytes(b"written")
        raise error

    monkeypatch.setattr(f"janus_jax.weights.write.{writer}", full)
    flags = ["--src", official, "--dst", tmp_path / "out", "--to", to]
    monkeypatch.setattr(sys, "argv", ["convert_torch_weights.py", *map(str, flags)])
    with pytest.raises(SystemExit) as exit:
        run_main(convert_torch_weights.main)
    assert exit.value.code == 2
    *bar, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no space left on the disk") and "error" not in "".join(bar)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


@pytest.fixture
def script(monkeypatch, capsys):
    """script(*flags) -> (exit code, the last line on stderr) of convert_torch_weights.py, in this process."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["convert_torch_weights.py", *map(str, flags)])
        code = 0
        try:
            run_main(convert_torch_weights.main)
        except SystemExit as stop:
            code = stop.code
        return code, (capsys.readouterr().err.splitlines() or [""])[-1]

    return run


def everything(directory):
    return {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_an_earlier_model_is_replaced_and_nothing_else_with_it(official, tmp_path, script):
    ours = tmp_path / "ours"
    assert script("--src", official, "--dst", ours)[0] == 0
    assert script("--src", official, "--dst", ours)[0] == 0
    shutil.copyfile(official / "config.json", ours / "config.json")
    shutil.copyfile(official / "model.safetensors", ours / "model.safetensors")
    before = everything(tmp_path)
    for said in ("config.json, model.safetensors", "model.safetensors"):
        code, line = script("--src", official, "--dst", ours)
        assert code == 2 and f"ours: it holds {said}, which this program did not write" in line
        assert everything(tmp_path) == before
        (ours / "config.json").unlink(missing_ok=True)
        before.pop(ours / "config.json", None)
    (ours / "model.safetensors").unlink()
    assert script("--src", official, "--dst", ours)[0] == 0


@pytest.mark.parametrize("to", ["janus_jax", "hf"])
@pytest.mark.parametrize(
    ("dst", "said"),
    [
        ("official", "is"),
        ("official/", "is"),
        ("official/../official", "is"),
        ("link", "is"),
        ("official/new", "is inside of"),
        ("official/new/deep", "is inside of"),
        ("link/new", "is inside of"),
    ],
)
def test_the_place_is_not_in_the_source(official, tmp_path, monkeypatch, script, to, dst, said):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("official")
    before = everything(tmp_path)
    for src in (official, "official/", "link"):
        code, line = script("--src", src, "--dst", dst, "--to", to)
        assert code == 2 and line.startswith(
            f"error: cannot write to {dst}: it {said} {src}, the model"
        )
    assert everything(tmp_path) == before and not (official / "new").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tokenizer", "nope"], "--tokenizer nope: there is no such file"),
        (["--tokenizer", "official"], "official must be a file, but it is a directory"),
        (["--parity", "official"], "official must be a file, but it is a directory"),
        (["--parity", "nope.npz"], "nope.npz is no recording: there is no such file"),
        (["--parity", "official/config.json"], "is no recording (.npz of arrays)"),
    ],
)
def test_other_files_are_told_before_the_conversion(
    official, tmp_path, monkeypatch, script, flags, said
):
    monkeypatch.chdir(tmp_path)
    code, line = script("--src", "official", "--dst", "new", *flags)
    assert code == 2 and said in line and "or pass --tokenizer" not in line
    assert [p.name for p in tmp_path.iterdir()] == ["official"]


def test_a_place_beside_the_source_with_a_longer_name_is_apart(official, script):
    assert script("--src", official, "--dst", f"{official}2")[0] == 0


@pytest.mark.parametrize("to", ["janus_jax", "official"])
def test_too_small_a_disk_is_seen_before_writing(official, tmp_path, monkeypatch, to):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match="3 MB are needed, 1 MB are free; nothing there was"):
        convert(official, tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["official"]
