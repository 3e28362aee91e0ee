"""Adapters in the layout of PEFT: round trips, names, models with one in them, and what must be refused."""

import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from adapter_files import (
    CONFIG,
    EVERYTHING,
    WEIGHTS,
    adapted,
    base,
    edit_settings,
    edit_tensors,
    leaves,
    outputs,
    rename,
    same,
)
from converting import GOLDEN, TABLES, convert, write_hf
from safetensors.numpy import load_file

from janus_jax.adapters import attach_lora, has_lora, merge_lora, split_lora
from janus_jax.checkpoints import LazyArray, load_leaves, load_model, save_model
from janus_jax.config import JANUS_PRO_7B
from janus_jax.errors import UserError
from janus_jax.interop import HF, OFFICIAL, open_checkpoint, params_to_torch
from janus_jax.interop.adapters import (
    read_adapter,
    source_with_adapter,
    with_adapter,
    write_adapter,
)
from janus_jax.interop.conversion.convert import nest
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import write_model
from janus_jax.models import stack_layers, unstack_layers
from janus_jax.processing import ProcessorConfig


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An adapter on the language model, with the names of transformers."""
    path = tmp_path_factory.mktemp("adapters") / "language"
    write_adapter(adapted(), CONFIG, path, base="deepseek-ai/Janus-Pro-1B")
    return path


@pytest.fixture
def adapter(written, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(written, tmp_path / "adapter")


# Round trips


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_written_is_read_bit_for_bit(tmp_path, table, scanned, dtype):
    cast = lambda path, x: x if path[-1].key == "lora_scale" else x.astype(dtype)
    params = jax.tree_util.tree_map_with_path(cast, leaves(adapted(EVERYTHING)))
    given = stack_layers(params, CONFIG) if scanned else params
    numbers = write_adapter(given, CONFIG, tmp_path / "adapter", table=table)
    same(read_adapter(tmp_path / "adapter", CONFIG), params)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert numbers["bytes"] == sum(x.nbytes for x in tensors.values())
    assert len(tensors) == 2 * numbers["modules"]
    assert {x.dtype for x in tensors.values()} == {np.dtype(dtype)}


def test_the_files_are_those_of_peft(written):
    values = json.loads((written / "adapter_config.json").read_text())
    assert {p.name for p in written.iterdir()} == {"adapter_config.json", WEIGHTS}
    assert values["peft_type"] == "LORA" and values["bias"] == "none"
    assert values["inference_mode"] is True and values["fan_in_fan_out"] is False
    assert (values["r"], values["lora_alpha"]) == (4, 10)
    assert values["rank_pattern"] == values["alpha_pattern"] == {}
    assert values["base_model_name_or_path"] == "deepseek-ai/Janus-Pro-1B"
    tensors = load_file(written / WEIGHTS)
    name = "base_model.model.model.language_model.layers.3.self_attn.q_proj.lora_{}.weight"
    width = CONFIG.decoder.width
    assert tensors[name.format("A")].shape == (4, width)
    assert tensors[name.format("B")].shape == (width, 4)
    pattern = re.compile(values["target_modules"])
    modules = {key.removeprefix("base_model.model.").rsplit(".lora_")[0] for key in tensors}
    everything = {key.removesuffix(".weight") for key in params_to_torch(base(), CONFIG, HF)}
    assert {name for name in everything if pattern.fullmatch(name)} == modules
    assert "model.vision_model.encoder.layers.0.self_attn.q_proj" in everything - modules


@pytest.mark.parametrize("alpha", [16, 1, 0.1, 10 / 3, 1e-6, 12345.678])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_every_scale_survives(tmp_path, alpha, rank):
    params = leaves(adapted(("decoder/layers_0/attn/q_proj",), rank, alpha))
    write_adapter(params, CONFIG, tmp_path / "adapter")
    same(read_adapter(tmp_path / "adapter", CONFIG), params)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"]
    assert written == pytest.approx(alpha)
    assert written == alpha or alpha not in (16, 1)  # round ones stay round


def test_ranks_and_alphas_may_differ_by_layer(tmp_path):
    large, small = adapted(), adapted(("decoder/layers_0/mlp/*_proj",), 2, 3.0)
    mixed = leaves(large)
    mixed["decoder"]["layers_0"]["mlp"] = leaves(small)["decoder"]["layers_0"]["mlp"]
    write_adapter(mixed, CONFIG, tmp_path / "adapter")
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert set(values["rank_pattern"].values()) == {2} and len(values["rank_pattern"]) == 3
    assert set(values["alpha_pattern"].values()) == {3}
    same(read_adapter(tmp_path / "adapter", CONFIG), mixed)
    # On stacked layers the smaller rank is filled up with zeros, which change nothing.
    wanted = outputs(attach_lora(base(), mixed))
    stacked = attach_lora(stack_layers(base(), CONFIG), mixed)
    assert stacked["decoder"]["layers"]["mlp"]["up_proj"]["lora_a"].shape[-1] == 4
    for one, other in zip(
        wanted, outputs(unstack_layers(merge_lora(stacked), CONFIG)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


# Names


@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.replace(".weight", ".default.weight"),
        lambda k: k.removeprefix("base_model.model."),
        lambda k: k.replace("model.language_model.layers", "language_model.model.layers"),
        lambda k: k.replace("model.language_model.layers", "model.layers"),
        lambda k: k.replace("model.language_model.layers", "layers"),
        lambda k: k.replace("model.language_model.layers", "language_model.layers"),
        lambda k: k.replace("base_model.model.model.language_model", "language_model.base_model.model.model"),
        lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
    ],
    ids=["named", "bare", "official", "causal LM", "llama", "core", "inside", "compiled"],
)  # fmt: skip
def test_names_of_every_way_to_save(adapter, change):
    rename(adapter, change)
    same(read_adapter(adapter, CONFIG), leaves(adapted()))


def test_the_parts_of_a_fused_kernel_keep_their_own_factors(tmp_path):
    """Of the vision tower's query, key and value, transformers may have an adapter on one alone."""
    params = adapted(("siglip/blocks_0/qkv",), rank=2)
    write_adapter(params, CONFIG, tmp_path / "adapter")
    whole = read_adapter(tmp_path / "adapter", CONFIG)
    edit_tensors(tmp_path / "adapter", lambda t: {k: v for k, v in t.items() if ".k_proj" not in k})
    part = read_adapter(tmp_path / "adapter", CONFIG)["siglip"]["blocks_0"]["qkv"]
    change = lambda node: node["lora_scale"] * (node["lora_a"] @ node["lora_b"])
    q, k, v = np.split(change(part), 3, axis=-1)
    wanted = np.split(change(whole["siglip"]["blocks_0"]["qkv"]), 3, axis=-1)
    assert part["lora_a"].shape[-1] == 4 and not k.any()
    for one, other in ((q, wanted[0]), (v, wanted[2])):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_modules_that_nothing_uses_are_passed_over(adapter):
    pooling = "base_model.model.vision_model.vision_tower.attn_pool.kv.lora_{}.weight"
    more = {pooling.format(half): np.ones((4, 4), np.float32) for half in "AB"}
    edit_tensors(adapter, lambda tensors: tensors | more)
    same(read_adapter(adapter, CONFIG), leaves(adapted()))


def test_an_untrained_adapter_is_told(adapter, capsys):
    read_adapter(adapter, CONFIG)
    assert capsys.readouterr().err == ""
    edit_tensors(adapter, lambda t: {k: v * (".lora_A." in k) for k, v in t.items()})
    read_adapter(adapter, CONFIG)
    (line,) = capsys.readouterr().err.splitlines()
    assert "changes nothing: every lora_B is zero" in line


# Models with an adapter in them


def test_attached_it_computes_what_it_did_where_it_was_trained(written):
    params = attach_lora(base(), read_adapter(written, CONFIG))
    for one, other in zip(outputs(params), outputs(adapted()), strict=True):
        np.testing.assert_array_equal(one, other)
    adapter, rest = split_lora(params)
    assert has_lora(adapter) and jax.tree.all(jax.tree.map(lambda a, b: a is b, rest, base()))


def test_lazy_stacked_layers_are_added_one_by_one(written):
    """As the 7B model is loaded: what is read for one layer is that layer."""
    stacked, read = stack_layers(base(), CONFIG), []

    def lazy(path, x):
        part = lambda i: (read.append((path[-2].key, i)), x[i])[1]
        return LazyArray(x.shape, x.dtype, lambda: pytest.fail("read whole"), (), part)

    params = {"decoder": stacked["decoder"]}
    opened = jax.tree_util.tree_map_with_path(lazy, params)
    merged = merge_lora(attach_lora(opened, read_adapter(written, CONFIG)))
    assert not read
    layer = load_leaves(unstack_layers(merged, CONFIG)["decoder"]["layers_2"]["mlp"])
    assert read == [(name, 2) for name in ("down_proj", "gate_proj", "up_proj")]
    same(layer, merge_lora(adapted())["decoder"]["layers_2"]["mlp"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tokenizer):
    """The base model in every format."""
    directory = tmp_path_factory.mktemp("sources")
    write_hf(directory / "hf", params_to_torch(base(), CONFIG, HF), CONFIG, tokenizer)
    convert(directory / "hf", directory / "official", "official")
    config = CONFIG.replace(scan_layers=True)
    processor = ProcessorConfig.from_model(config).to_dict()
    params = stack_layers(base(), CONFIG)
    save_model(directory / "native", config, processor, tokenizer.to_json(), params)
    return {name: directory / name for name in ("hf", "official", "native")}


def test_every_format_takes_an_adapter(sources, written, monkeypatch, tmp_path):
    monkeypatch.setenv("JANUS_JAX_CACHE", str(tmp_path / "cache"))
    wanted = merge_lora(adapted())
    for source in sources.values():
        loaded = with_adapter(open_checkpoint(source), written)
        assert all(isinstance(x, LazyArray) for x in jax.tree.leaves(loaded.params))
        assert loaded.origin["adapter"] == str(written)
        same(load_leaves(unstack_layers(loaded.params, CONFIG)), wanted)


@pytest.mark.parametrize(
    "to", ["hf", "official", pytest.param("janus_jax", marks=pytest.mark.slow)]
)
def test_a_converted_model_has_the_sum(sources, written, tmp_path, to):
    source = source_with_adapter(open_source(sources["hf"]), written)
    write_model(source, tmp_path / "merged", to, *source.processor())
    wanted = merge_lora(adapted())
    if to == "janus_jax":
        loaded = load_model(tmp_path / "merged")
        assert loaded.origin["adapter"] == str(written)
        same(unstack_layers(loaded.params, CONFIG), wanted)
    else:
        state = load_file(tmp_path / "merged" / "model.safetensors")
        table = {"hf": HF, "official": OFFICIAL}[to]
        for name, value in params_to_torch(wanted, CONFIG, table).items():
            np.testing.assert_array_equal(state[name], value)
    again = open_source(tmp_path / "merged")
    params = {path: array.load() for path, array in again.arrays.items()}
    for one, other in zip(outputs(nest(params)), outputs(adapted()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


# What must be refused


def settings(**fields):
    return lambda directory: edit_settings(directory, **fields)


def tensors(change):
    return lambda directory: edit_tensors(directory, change)


def renamed(old, new):
    return lambda directory: rename(directory, lambda key: key.replace(old, new))


def reshaped(part, shape):
    """Every tensor with this in its name gets another shape."""
    values = np.ones(shape, np.float32)
    return tensors(lambda t: {k: values if part in k else v for k, v in t.items()})


Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_"
HEAD = "base_model.model.lm_head.base_layer.weight"
LAYER = "layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "holds no adapter: it has no adapter_config"),
        (lambda d: (d / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
        (settings(peft_type="LOHA"), "peft_type is 'LOHA', but only 'LORA' is read"),
        (settings(use_dora=True), r"use_dora is True \(DoRA\)"),
        (settings(bias="all"), "bias is 'all'"),
        (settings(modules_to_save=["lm_head"]), "modules_to_save is .*whole modules"),
        (settings(use_new_thing=True), "use_new_thing is not known"),
        (settings(init_lora_weights="pissa_niter_4"), "changes the base model as well"),
        (settings(trainable_token_indices=[3]), "rows of embeddings"),
        (settings(layer_replication=[[0, 2]]), "replicated layers"),
        (settings(r=0), "r must be a whole number from 1"),
        (settings(r="8"), "r must be a whole number from 1 to 4096, not '8'"),
        (settings(lora_alpha=float("nan")), "lora_alpha must be a number"),
        (settings(lora_alpha=None), "lora_alpha must be a number"),
        (settings(alpha_pattern=[1]), "alpha_pattern must be an object"),
        (settings(alpha_pattern={"(": 1}), r"alpha_pattern: '\(' is no pattern"),
        (settings(rank_pattern={"q_proj": -1}), "rank_pattern: 'q_proj' must be a whole number"),
        (settings(r=8), r"of another rank than .* \(8\): lora_A of .* is \[4, 344\], but \[8, 344\]"),
        (settings(rank_pattern={"down_proj": 8}), r"lora_A of .*down_proj is \[4, 344\], but \[8, 344\]"),
        (tensors(lambda t: {}), "has no tensors"),
        (tensors(lambda t: t | {Q + "A.weight": t[Q + "A.weight"] * np.nan}), "not finite"),
        (tensors(lambda t: t | {"base_model.model.lm_head.weight": t[Q + "A.weight"]}), "no factor of LoRA"),
        (tensors(lambda t: t | {Q + "magnitude_vector": t[Q + "A.weight"]}), "is of DoRA"),
        (tensors(lambda t: t | {Q + "B.bias": t[Q + "A.weight"]}), "whole parameter beside"),
        (renamed("q_proj.lora_A", "q_proj.lora_embedding_A"), "on an embedding, which is not read"),
        (renamed(LAYER + "A", LAYER + "C"), "no factor of LoRA"),
        (tensors(lambda t: {k: v for k, v in t.items() if k != Q + "B.weight"}), "has lora_A, but no lora_B"),
        (tensors(lambda t: {k: v for k, v in t.items() if k != Q + "A.weight"}), "has lora_B, but no lora_A"),
        (tensors(lambda t: t | {Q + "A.other.weight": t[Q + "A.weight"]}), "the same factor: it must hold one"),
        (renamed("0.self_attn.q_proj", "0.self_attn.qproj"), r"Did you mean '.*layers\.0\..*q_proj'"),
        (renamed("base_model.model.model.language_model", "lora_unet_down_blocks"), "is no module of Janus"),
        (renamed("layers.0.self_attn.q_proj", "embed_tokens"), "no linear layer"),
        (renamed("language_model.layers.3", "language_model.layers.9"), r"small has no .*layers\.9\..* 4 layers"),
        (reshaped(Q + "A", (4, 2048)), r"of another base model than small, .* is \[4, 2048\], but \[4, 128\]"),
        (reshaped(Q + "B", (2048, 4)), r"is \[2048, 4\], but \[128, 4\] is needed"),
        (reshaped(Q + "A", (4, 128, 1, 1)), r"is \[4, 128, 1, 1\], but \[4, 128\]"),
        (reshaped(Q + "A", (0,)), "is empty, as DeepSpeed"),
        (tensors(lambda t: {k: np.int32(v) for k, v in t.items()}), "has dtype I32, not a float"),
        (tensors(lambda t: t | {HEAD: np.ones((9, 128), np.float32)}), "vocabulary was resized"),
    ],
)  # fmt: skip
def test_what_is_no_adapter_for_it_is_one_line(adapter, change, message):
    change(adapter)
    with pytest.raises(UserError, match=message) as error:
        read_adapter(adapter, CONFIG)
    text = str(error.value)
    assert "\n" not in text and str(adapter) in text and len(text) < 600


def test_other_places_are_told_apart(tmp_path, sources, written):
    with pytest.raises(UserError, match="copy it to this machine"):
        read_adapter("gs://bucket/run/adapter/stage2", CONFIG)
    with pytest.raises(UserError, match="no such directory"):
        read_adapter(tmp_path / "nothing", CONFIG)
    with pytest.raises(UserError, match="is a model or a training run, not an adapter"):
        read_adapter(sources["native"], CONFIG)
    with pytest.raises(UserError, match="holds no adapter"):
        read_adapter(GOLDEN, CONFIG)
    with pytest.raises(
        UserError, match=r"of another base model than janus-pro-7b.*but \[4, 11008\]"
    ):
        read_adapter(written, JANUS_PRO_7B)
    with pytest.raises(UserError, match="not a model: give its base model as the checkpoint"):
        open_checkpoint(written)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    place = tmp_path / "adapter"
    with pytest.raises(UserError, match="no adapter in these parameters"):
        write_adapter(base(), CONFIG, place)
    with pytest.raises(UserError, match="not one of janus-pro-7b"):
        write_adapter(adapted(("image_head/**",)), JANUS_PRO_7B, place)
    broken = jax.tree.map(lambda x: x * np.nan, leaves(adapted()))
    with pytest.raises(UserError, match="not finite"):
        write_adapter(broken, CONFIG, place)
    assert not place.exists()
    place.mkdir()
    (place / "mine.txt").write_text("")
    with pytest.raises(UserError, match="it exists and is not empty"):
        write_adapter(adapted(), CONFIG, place)
    (place / "mine.txt").unlink()
    for _ in range(2):  # an earlier one of ours is replaced
        write_adapter(adapted(), CONFIG, place)
    assert sorted(p.name for p in place.iterdir()) == ["adapter_config.json", WEIGHTS]


def test_a_kernel_that_is_not_there_or_has_one_already(written):
    adapter = read_adapter(written, CONFIG)
    with pytest.raises(UserError, match="there is an adapter on decoder/layers_0/attn/k_proj"):
        attach_lora(attach_lora(base(), adapter), adapter)
    with pytest.raises(
        UserError, match="decoder/layers_0/attn/k_proj, which the model does not have"
    ):
        attach_lora({"decoder": {}}, adapter)
    wider = jax.tree.map(lambda x: np.repeat(x, 2, axis=-1) if x.ndim else x, base())
    with pytest.raises(UserError, match=r"its factors .* do not fit the kernel"):
        attach_lora(wider, adapter)
