"""Adapters and PEFT itself: what we write it loads, what it writes we load, and both compute the same numbers."""

import re

import numpy as np
import pytest
from adapter_files import (
    CONFIG,
    EVERYTHING,
    IDS,
    PIXELS,
    adapted,
    base,
    leaves,
    outputs,
    state,
)
from converting import write_hf

from janus_jax.adapters import attach_lora, merge_lora, split_lora
from janus_jax.interop import HF
from janus_jax.interop.adapters import read_adapter, write_adapter
from janus_jax.interop.conversion.convert import flatten
from janus_jax.param_groups import merge_params, split_params
from janus_jax.processing import build_word_tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]
TOLERANCE = 1e-4  # outputs are as large as 5


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The base model in the format of transformers."""
    path = tmp_path_factory.mktemp("base") / "hf"
    write_hf(path, state(), CONFIG, build_word_tokenizer(["a", "cat"]))
    return path


@pytest.fixture
def model(directory):
    from transformers import JanusForConditionalGeneration

    return JanusForConditionalGeneration.from_pretrained(directory).eval()


def outputs_of_torch(model):
    import torch

    model.eval()
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    pixels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    with torch.no_grad():
        hidden = core.model.language_model(input_ids=torch.from_numpy(IDS)).last_hidden_state
        features = core.model.aligner(core.model.vision_model(pixels).last_hidden_state)
        heads = core.lm_head(hidden), core.model.generation_head(hidden)
        return [x.numpy() for x in (*heads, features)]


def agree(model, params):
    """Asserts that both compute the same, and not what the base model does."""
    theirs = outputs_of_torch(model)
    for one, other in zip(theirs, outputs(params), strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)
    assert np.abs(theirs[0] - outputs(base())[0]).max() > 0.1


def adapted_modules(model):
    """Names of the modules that have an adapter in a PEFT model."""
    found = (re.fullmatch(r"base_model\.model\.(.+)\.lora_A", n) for n, _ in model.named_modules())
    return {match[1] for match in found if match}


def mixed_ranks():
    """Other ranks and alphas on some modules."""
    whole = adapted()
    small = leaves(adapted(("decoder/layers_1/attn/*_proj", "decoder/*/mlp/up_proj"), 2, 3.0))
    _, rest = split_lora(whole)
    paths = [f"{path.rpartition('/')[0]}" for path in flatten(small)]
    _, large = split_params(leaves(whole), tuple(dict.fromkeys(paths)))
    return merge_params(rest, merge_params(large, small))


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (adapted, 28),
        (lambda: adapted(EVERYTHING), 47),
        (lambda: adapted(("decoder/layers_[13]/attn/q_proj",)), 2),
        (mixed_ranks, 28),
    ],
    ids=["language model", "everything", "some layers", "mixed ranks"],
)
def test_peft_loads_what_we_write(peft, model, tmp_path, make, count):
    params = make()
    written = write_adapter(params, CONFIG, tmp_path / "adapter", base="deepseek-ai/Janus-Pro-1B")
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    names = {k.removesuffix(".weight") for p in kernels(params) for k in names_of(p)}
    assert adapted_modules(loaded) == names and written["modules"] == len(names) == count
    agree(loaded, params)
    merged = merge_lora(params)
    agree(loaded, merged)
    agree(loaded.merge_and_unload(), merged)


def kernels(params):
    return [p.removesuffix("lora_a") + "kernel" for p in flatten(params) if p.endswith("/lora_a")]


def names_of(path):
    return [slot.name for slot in HF.to_torch(path)]


def test_peft_finds_the_base_model_by_itself(peft, directory, tmp_path):
    params = adapted()
    write_adapter(params, CONFIG, tmp_path / "adapter", base=str(directory))
    agree(peft.AutoPeftModel.from_pretrained(tmp_path / "adapter"), params)


def test_the_vision_tower_stays_as_it_is(peft, model, tmp_path):
    """Its modules have the names of those of the language model: a list of names would hit them, too."""
    write_adapter(adapted(("decoder/*/attn/q_proj",)), CONFIG, tmp_path / "adapter")
    hit = adapted_modules(peft.PeftModel.from_pretrained(model, tmp_path / "adapter"))
    assert len(hit) == CONFIG.decoder.layers
    assert all(name.startswith("model.language_model.layers.") for name in hit)
    plain = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    assert any("vision_model" in name for name in adapted_modules(plain))


@pytest.mark.parametrize(
    "options",
    [
        dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),  # as in every tutorial
        dict(r=3, lora_alpha=16, target_modules="all-linear"),
        dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], use_rslora=True),
        dict(
            r=4,
            lora_alpha=8,
            target_modules=r".*language_model.*\.(q|k|v|o)_proj",
            rank_pattern={
                "layers.0.self_attn.q_proj": 2,
                r".*\.layers\.[23]\.self_attn\.k_proj": 6,
            },
            alpha_pattern={"k_proj": 3, "^model.language_model.layers.1.self_attn.v_proj": 20},
        ),
        dict(
            r=2,
            target_modules=["q_proj", "k_proj"],
            alpha_pattern={"vision_model.encoder.layers.0.self_attn.k_proj": 1},
        ),
        dict(r=2, target_modules=["lm_head", "fc1", "qkv", "vision_head"]),
        dict(r=2, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights="gaussian"),
    ],
    ids=["list", "all-linear", "rslora", "patterns", "parts", "heads", "one layer"],
)
def test_we_load_what_peft_writes(peft, model, tmp_path, options):
    import torch

    torch.manual_seed(0)
    options = {"init_lora_weights": False} | options
    trained = peft.get_peft_model(model, peft.LoraConfig(**options))
    with torch.no_grad():
        for name, value in trained.named_parameters():
            if ".lora_B." in name:
                value.normal_(0, 0.3)
    trained.save_pretrained(tmp_path / "adapter")
    params = attach_lora(base(), read_adapter(tmp_path / "adapter", CONFIG))
    agree(trained, params)
    agree(trained, merge_lora(params))


def test_a_part_adapted_alone_is_the_part_of_the_model(peft, model, tmp_path):
    """Names then begin where that part does; so do those of the official model's `language_model`."""
    import torch

    options = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    part = peft.get_peft_model(model.model.language_model, options)
    part.save_pretrained(tmp_path / "adapter")  # base_model.model.layers.0. ...
    model.model.language_model = part.get_base_model()
    agree(model, attach_lora(base(), read_adapter(tmp_path / "adapter", CONFIG)))


def test_a_pickle_of_tensors_is_read_as_well(peft, model, tmp_path):
    options = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    trained = peft.get_peft_model(model, options)
    trained.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    assert (tmp_path / "adapter" / "adapter_model.bin").is_file()
    agree(trained, attach_lora(base(), read_adapter(tmp_path / "adapter", CONFIG)))


def test_what_was_read_is_written_as_it_was(peft, model, tmp_path):
    """A file of PEFT, through ours, in PEFT: also where we have one kernel for its three modules."""
    options = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    trained = peft.get_peft_model(model, options)
    trained.save_pretrained(tmp_path / "theirs")
    wanted = outputs_of_torch(trained)
    write_adapter(read_adapter(tmp_path / "theirs", CONFIG), CONFIG, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(trained.unload(), tmp_path / "ours")
    for one, other in zip(wanted, outputs_of_torch(again), strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE)
