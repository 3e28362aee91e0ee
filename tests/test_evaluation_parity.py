"""The seven benchmarks, asked of the official tiny checkpoint: our answers are those of transformers.

From the files of a benchmark to tokens nothing is shared: transformers reads the pictures with its own processor,
tokenizes the rendered prompt as one string and decodes greedily with its own loop. The answers are nonsense, as
nothing was trained; their tokens must be the same.
"""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import benchmark_files
import jax
import numpy as np
import pytest
from benchmark_files import write_layout
from dummies_tokenizers import byte_level
from PIL import Image
from safetensors.numpy import load_file

from janus_jax import Janus
from janus_jax.evaluation.understanding import (
    PROTOCOLS,
    get_protocol,
    make_prompt,
    open_benchmark,
)
from janus_jax.evaluation.understanding.benchmarks import BENCHMARK_FACTS
from janus_jax.interop import HF, config_from_official, params_from_torch, params_to_torch
from janus_jax.interop.configs.hf import config_to_hf
from janus_jax.processing import Processor

pytestmark = [pytest.mark.torch, pytest.mark.heavy]

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"
NEW = 6  # tokens of an answer
HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, do_normalize=True)


def noise(shade, kind="PNG"):
    """An encoded picture, wider than high, in which something can be seen."""
    file = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(0, 256, (9, 15, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 54), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def pictures_to_look_at(monkeypatch):
    monkeypatch.setattr(benchmark_files, "picture", noise)


@pytest.fixture(scope="module", autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The recorded checkpoint; its tokenizer reads any text and writes each of its 512 tokens differently."""
    directory = tmp_path_factory.mktemp("parity") / "official"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, directory / name)
    known = byte_level(special=False, words=()).vocab_size  # control tokens are written, too
    words = [chr(0x4E00 + i) for i in range(known, 512)]
    tokenizer = json.loads(byte_level(special=False, words=words).to_json())
    tokenizer["decoder"] = None  # tokens are written as they are called, with blanks between
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


@pytest.fixture(scope="module")
def janus(official):
    return Janus.load(official, dtype="float32")


@pytest.fixture(scope="module")
def theirs(official):
    """(model, tokenizer, image processor) of transformers with the same weights."""
    import torch
    from transformers import JanusConfig as JanusConfig_hf
    from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(official / "tokenizer.json"))
    config = config_from_official(json.loads((official / "config.json").read_text()))
    params = params_from_torch(load_file(official / "model.safetensors"), config, "float32")
    state = params_to_torch(params, config, table=HF)
    # It builds no image tokenizer of this size. Answers need none: it gets one that is small and unused.
    drawing = ("model.vqmodel.", "model.generation_")
    state = {k: torch.tensor(v) for k, v in state.items() if not k.startswith(drawing)}
    buildable = config.replace(vq=config.vq.replace(ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1))
    image_id = tokenizer.convert_tokens_to_ids("<image_placeholder>")
    model = JanusForConditionalGeneration(
        JanusConfig_hf.from_dict(config_to_hf(buildable, image_id, "float32"))
    )
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(drawing) for name in missing)
    size = config.siglip.image_size
    pixels = JanusImageProcessorPil(size={"height": size, "width": size}, **HALF)
    return model.eval(), tokenizer, pixels


def tokens_of_transformers(theirs, prompt, new):
    """The greedy tokens that follow a prompt, at most `new`, without the end."""
    import torch

    model, tokenizer, image_processor = theirs
    slots = "<image_placeholder>" * model.config.vision_config.num_image_tokens
    slots = f"<begin_of_image>{slots}<end_of_image>"
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    text = bos + prompt.rendered.replace("<image_placeholder>", slots)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    pictures = [Image.fromarray(pixels) for pixels in prompt.load_pictures()]
    pixels = image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    end = tokenizer.convert_tokens_to_ids(eos)
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_length=ids.shape[1] + new,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            generation_mode="text",
        )
    tokens = out[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(end)] if end in tokens else tokens


def answers_of_ours(janus, prompts, new):
    """The answers of all prompts of a protocol, computed together."""
    config = dataclasses.replace(
        janus.processor.config,
        template=prompts[0].template,
        system_prompt=prompts[0].system_prompt,
    )
    janus.processor = Processor(config, janus.processor.tokenizer)
    pictures = [prompt.load_pictures() for prompt in prompts]
    return janus.answer_batch(pictures, [p.question for p in prompts], max_new_tokens=new)


def check(janus, theirs, prompts):
    """Asserts that both answer prompts of one protocol with the same tokens; the answers."""
    ours = answers_of_ours(janus, prompts, NEW)
    expected = [tokens_of_transformers(theirs, prompt, NEW) for prompt in prompts]
    assert ours == [" ".join(theirs[1].convert_ids_to_tokens(ids)) for ids in expected]
    assert sum(map(len, expected)) > NEW * len(prompts) / 2
    return ours


def prompts_of(benchmark, protocol, directory):
    protocol = get_protocol(protocol, benchmark)
    paths, root = write_layout(benchmark, "tsv", directory)
    items = open_benchmark(benchmark, paths, root, split=protocol.split)
    return [make_prompt(item, protocol) for item in items]


# One that asks for yes or no, one with several pictures, one with a system prompt.
@pytest.mark.parametrize("benchmark", ["pope", "mmmu", "mmvet"])
def test_answers_are_those_of_transformers(benchmark, janus, theirs, tmp_path):
    prompts = prompts_of(benchmark, "paper", tmp_path)[::3]
    check(janus, theirs, prompts)
    several = [len(prompt.pictures) for prompt in prompts]
    assert max(several) == (2 if benchmark == "mmmu" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("benchmark", BENCHMARK_FACTS)
def test_all_answers_under_all_protocols(benchmark, protocol, janus, theirs, tmp_path):
    check(janus, theirs, prompts_of(benchmark, protocol, tmp_path))


def test_the_pictures_make_a_difference(janus, theirs, tmp_path):
    prompts = prompts_of("pope", "paper", tmp_path)[:4]
    asked = [dataclasses.replace(prompts[0], pictures=prompt.pictures) for prompt in prompts]
    assert len(set(check(janus, theirs, asked))) == len(asked)
