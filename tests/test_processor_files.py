"""Settings beside PyTorch weights: what transformers really writes is read, what we do not do is refused."""

import json

import pytest

from janus_jax.config import JANUS_TINY
from janus_jax.errors import UserError
from janus_jax.interop.configs.llama import decoder_from_llama, decoder_to_llama
from janus_jax.interop.configs.processor import processor_files, read_processor
from janus_jax.processing import UNDERSTANDING_SYSTEM_PROMPT, ProcessorConfig, build_word_tokenizer

SIDE = JANUS_TINY.siglip.image_size
TOKENIZER = build_word_tokenizer("a red cat".split())
NEW, OLD = "processor_config.json", "preprocessor_config.json"
TYPES = {"hf": "janus", "official": "multi_modality"}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def prepare(directory, table):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": TYPES[table]}))
    (directory / "tokenizer.json").write_text(TOKENIZER.to_json())
    return directory


def read(directory):
    return read_processor(directory, JANUS_TINY)[0]


def by_transformers(directory, **settings):
    """A directory that the installed transformers wrote."""
    from transformers import JanusProcessor, PreTrainedTokenizerFast
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    prepare(directory, "hf")
    marks = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        extra_special_tokens={**marks, "eoi_token": "<end_of_image>"},
    )
    size = {"height": SIDE, "width": SIDE}
    pixels = JanusImageProcessorPil(**{**HALF, "size": size, **settings})
    processor = JanusProcessor(
        pixels,
        tokenizer,
        use_default_system_prompt=True,
        num_image_tokens=JANUS_TINY.siglip.num_patches,
    )
    processor.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(TOKENIZER.to_json())
    return directory


@pytest.mark.torch
def test_what_transformers_5_writes_is_read(tmp_path):
    directory = by_transformers(tmp_path)
    assert not (directory / OLD).exists()
    assert "image_mean" in json.loads((directory / NEW).read_text())["image_processor"]
    wanted = ProcessorConfig.from_model(JANUS_TINY, system_prompt=UNDERSTANDING_SYSTEM_PROMPT)
    assert read(directory) == wanted


CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
UNSUPPORTED = {
    "image_mean": [CLIP_MEAN, [0.5, 0.5, 0.4], [0, 0, 0]],
    "image_std": [CLIP_STD, [1, 1, 1]],
    "size": [{"height": 384, "width": 384}, {"height": SIDE, "width": 384}],
    "min_size": [1, 28],
    "resample": [0, 2, 1],
    "rescale_factor": [1 / 127.5, 1.0],
    "do_pad": [False],
    "do_resize": [False],
    "do_rescale": [False],
    "do_normalize": [False],
}


@pytest.mark.torch
@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in UNSUPPORTED.items() for v in vs])
def test_what_transformers_5_writes_is_refused_by_name(tmp_path, key, value):
    directory = by_transformers(tmp_path, **{key: value})
    with pytest.raises(UserError, match=rf"processor_config.json: image_processor: {key}\b"):
        read(directory)


def write_section(directory, place, values):
    if place == NEW:
        (directory / NEW).write_text(json.dumps({"image_processor": values}))
    else:
        (directory / OLD).write_text(json.dumps(values))


# What no processor of transformers writes, but a person or another version may have.
ALSO_UNSUPPORTED = [
    ("image_mean", None),
    ("image_mean", [0.5, 0.5]),
    ("image_mean", "0.5"),
    ("image_std", 1),
    ("image_std", [float("nan")] * 3),
    ("size", 384),
    ("size", {"shortest_edge": SIDE}),
    ("size", {"longest_edge": SIDE}),
    ("size", {"height": SIDE}),
    ("size", "large"),
    ("size", []),
    ("image_size", 384),
    ("image_size", [SIDE, 384]),
    ("min_size", "14"),
    ("min_size", True),
    ("min_size", 10**60),
    ("resample", "bilinear"),
    ("resample", [3]),
    ("rescale_factor", 0),
    ("rescale_factor", 10**60),
    ("background_color", [0, 0, 0]),
    ("background_color", 255),
    ("do_pad", 0),
    ("do_resize", "false"),
    ("do_rescale", {}),
    ("do_center_crop", True),
    ("do_thumbnail", True),
    ("image_processor_type", "SiglipImageProcessor"),
    ("image_processor_type", "CLIPImageProcessorFast"),
    ("image_processor_type", ["JanusImageProcessor"]),
]


@pytest.mark.parametrize("place", [OLD, NEW])
@pytest.mark.parametrize(("key", "value"), [*ALSO_UNSUPPORTED, ("image_mean", "absent")])
def test_other_settings_are_refused_by_name(tmp_path, place, key, value):
    directory = prepare(tmp_path, "hf")
    values = {**HALF, key: value}
    if value == "absent":
        del values[key]
        values["min_size"] = 14
    write_section(directory, place, values)
    with pytest.raises(UserError, match=rf"{place}.* {key}\b") as error:
        read(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [OLD, NEW])
@pytest.mark.parametrize(
    "values",
    [
        HALF,
        {"image_mean": 0.5, "image_std": 0.5},
        {**HALF, "size": SIDE, "image_size": SIDE, "resample": "bicubic"},
        {**HALF, "size": {"height": SIDE, "width": SIDE, "longest_edge": None}},
        {**HALF, "size": [SIDE, SIDE], "min_size": 14.0, "resample": 3},
        {**HALF, "rescale_factor": 0.00392156862745098, "background_color": [127, 127, 127]},
        {**HALF, "do_pad": True, "do_resize": True, "do_rescale": True, "do_normalize": True},
        {**HALF, "do_pad": None, "size": None, "rescale_factor": None, "do_center_crop": False},
        {**HALF, "do_convert_rgb": True, "image_processor_type": "JanusImageProcessorFast"},
        {**HALF, "image_processor_type": "VLMImageProcessor", "processor_class": "VLChatProcessor"},
        {},
    ],
)
def test_what_equals_our_own_passes(tmp_path, place, values, capsys):
    directory = prepare(tmp_path, "hf")
    write_section(directory, place, values)
    read(directory)
    assert capsys.readouterr().err == ""


def test_a_section_that_is_none_is_refused(tmp_path):
    directory = prepare(tmp_path, "hf")
    for text in ('{"image_processor": 3}', '{"image_processor": []}'):
        (directory / NEW).write_text(text)
        with pytest.raises(UserError, match="image_processor must be an object"):
            read(directory)
    (directory / NEW).write_text('{"image_processor": null, "sft_format": ["deepseek"]}')
    with pytest.raises(UserError, match="unknown sft_format"):
        read(directory)


def test_only_the_early_copy_of_janus_is_normalised_all_the_same(tmp_path, capsys):
    directory = prepare(tmp_path, "official")
    write_section(directory, OLD, {**HALF, "do_normalize": False})
    read(directory)
    assert "do_normalize is false" in capsys.readouterr().err
    prepare(tmp_path, "hf")
    with pytest.raises(UserError, match="do_normalize"):
        read(directory)


# Out and in again

OURS = [
    {},
    {"cfg_weight": 1.25, "temperature": 0.5},
    {"cfg_weight": 7.5, "system_prompt": UNDERSTANDING_SYSTEM_PROMPT},
    {"cfg_weight": 1.0, "temperature": 0.0},
    {"cfg_weight": 0.0, "system_prompt": "You draw.", "template": "deepseek_old"},
]


@pytest.mark.parametrize("table", TYPES)
@pytest.mark.parametrize("fields", OURS)
def test_settings_survive_both_formats(tmp_path, table, fields):
    native = ProcessorConfig.from_model(JANUS_TINY, **fields)
    prepare(tmp_path, table)
    for name, text in processor_files(JANUS_TINY, native, TOKENIZER, table).items():
        (tmp_path / name).write_text(text)
    assert read(tmp_path) == native


@pytest.mark.torch
@pytest.mark.parametrize("fields", OURS)
def test_transformers_reads_what_we_write(tmp_path, fields):
    from transformers import GenerationConfig, JanusProcessor

    native = ProcessorConfig.from_model(JANUS_TINY, **fields)
    prepare(tmp_path, "hf")
    for name, text in processor_files(JANUS_TINY, native, TOKENIZER, "hf").items():
        (tmp_path / name).write_text(text)
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert generation.guidance_scale == native.cfg_weight
    assert generation.temperature == native.temperature
    assert generation.do_sample is (None if native.temperature else False)
    processor = JanusProcessor.from_pretrained(tmp_path)
    assert list(processor.image_processor.image_mean) == [0.5] * 3
    assert processor.image_processor.size.height == SIDE
    assert processor.num_image_tokens == JANUS_TINY.siglip.num_patches
    assert processor.use_default_system_prompt is (
        native.system_prompt == UNDERSTANDING_SYSTEM_PROMPT
    )
    # And what it makes of them is read, too.
    processor.save_pretrained(tmp_path / "again")
    generation.save_pretrained(tmp_path / "again")
    again = read(prepare(tmp_path / "again", "hf"))
    assert (again.cfg_weight, again.temperature) == (native.cfg_weight, native.temperature)
    if native.system_prompt in ("", UNDERSTANDING_SYSTEM_PROMPT):
        assert again == native


@pytest.mark.parametrize(
    "value", ["5", -1, [5], True, float("nan"), float("inf"), 1e7, 10**6, 10**60]
)
@pytest.mark.parametrize("key", ["guidance_scale", "temperature"])
def test_impossible_numbers_of_drawing_are_refused(tmp_path, key, value):
    directory = prepare(tmp_path, "hf")
    (directory / "generation_config.json").write_text(json.dumps({key: value}))
    limits = f"{key} must be a number of at least 0 and below 1000000, not "
    with pytest.raises(UserError, match=rf"generation_config.json: {limits}"):
        read(directory)
    prepare(tmp_path, "official")
    key = key.replace("guidance_scale", "cfg_weight")
    (directory / NEW).write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=rf"processor_config.json: {key} must be a number of at"):
        read(directory)


@pytest.mark.parametrize("fields", [{"temperature": 1e7}, {"system_prompt": "a \ud800 b"}])
def test_what_cannot_be_loaded_is_not_built(fields):
    """Training and converting build with `from_model`, loading with `from_dict`."""
    for build in (lambda **f: ProcessorConfig.from_model(JANUS_TINY, **f), ProcessorConfig):
        with pytest.raises(UserError, match=f"processor config: {next(iter(fields))} "):
            ProcessorConfig.from_dict(build(**fields).to_dict())
    largest = ProcessorConfig.from_model(JANUS_TINY, temperature=999999.9, cfg_weight=999999)
    assert ProcessorConfig.from_dict(largest.to_dict()) == largest


def test_half_a_character_in_a_settings_file_is_refused(tmp_path):
    directory = prepare(tmp_path, "official")
    for text in (r"a \ud800 b", r"\udfff", r"a\ud83d"):
        (directory / NEW).write_text(f'{{"system_prompt": "{text}"}}')
        with pytest.raises(UserError, match=r"_config.json: system_prompt has half a char.*U\+D"):
            read(directory)
    (directory / NEW).write_text(r'{"system_prompt": "a \ud83d\ude00 b"}')
    assert read(directory).system_prompt == "a \U0001f600 b"


@pytest.mark.parametrize("value", ["16", True, [16], None, 17])
def test_another_number_of_image_tokens_is_shown_as_it_is_written(tmp_path, value):
    directory = prepare(tmp_path, "official")
    (directory / NEW).write_text(json.dumps({"num_image_tokens": value}))
    patches = JANUS_TINY.siglip.num_patches
    with pytest.raises(UserError, match=f"must be the number {patches}, .* not ") as error:
        read(directory)
    assert str(error.value).endswith(f"not {value!r}")


def test_generation_configs(tmp_path, capsys):
    directory = prepare(tmp_path, "hf")
    file = directory / "generation_config.json"
    file.write_text(json.dumps({"guidance_scale": None, "top_k": 0, "top_p": 1.0}))
    assert read(directory).cfg_weight == 5 and capsys.readouterr().err == ""
    file.write_text(json.dumps({"guidance_scale": 3, "top_k": 50, "top_p": 0.9}))
    assert read(directory).cfg_weight == 3
    assert "says top_k 50, top_p 0.9" in capsys.readouterr().err
    for settings in ({"do_sample": True}, {"do_sample": False, "temperature": 0.0}):
        file.write_text(json.dumps(settings))
        read(directory)
        assert capsys.readouterr().err == ""
    for settings in ({"do_sample": False}, {"do_sample": False, "temperature": 0.7}):
        file.write_text(json.dumps(settings))
        assert read(directory).temperature == settings.get("temperature", 1)
        assert "do_sample False (greedy" in capsys.readouterr().err
    # Beside official weights it is that of the language model.
    file.write_text(json.dumps({"temperature": 0.7, "top_p": 0.95}))
    prepare(tmp_path, "official")
    assert read(directory).temperature == 1 and capsys.readouterr().err == ""


# The rotary base

LLAMA = decoder_to_llama(JANUS_TINY.decoder)
PLAIN = [
    ({"rope_scaling": None}, 100.0),
    ({"rope_scaling": {"rope_type": "default"}}, 100.0),
    ({"rope_scaling": {"type": "default"}}, 100.0),
    ({"rope_scaling": {"type": "default", "rope_type": "default", "factor": 1.0}}, 100.0),
    ({"rope_scaling": {}}, 100.0),
    ({"rope_scaling": {"rope_type": "default", "rope_theta": 7.0}}, 7.0),
    ({"rope_parameters": {"rope_type": "default"}}, 100.0),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0),
    ({"rope_parameters": {"type": "default", "partial_rotary_factor": 1.0}}, 100.0),
    ({"rope_parameters": None, "rope_scaling": None, "partial_rotary_factor": None}, 100.0),
    ({"rope_theta": None}, 10000.0),
]
SCALED = [
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
    ("rope_scaling", {"rope_type": "default", "type": "linear"}),
    ("rope_scaling", {"rope_type": "default", "factor": 4.0}),
    ("rope_scaling", {"factor": 4.0}),
    ("rope_scaling", "default"),
    ("rope_scaling", ["default"]),
    ("rope_parameters", {"rope_type": "yarn", "rope_theta": 7.0}),
    ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 7.0}}),
    ("rope_parameters", 3),
    ("partial_rotary_factor", 0.5),
    ("rope_theta", "large"),
]


@pytest.mark.parametrize(("fields", "theta"), PLAIN)
def test_no_rope_scaling_in_any_spelling(fields, theta):
    section = {**LLAMA, "rope_theta": 100.0, **fields}
    wanted = JANUS_TINY.decoder.replace(rope_theta=theta)
    assert decoder_from_llama(section, "text_config") == wanted


@pytest.mark.parametrize(("key", "value"), SCALED)
def test_rope_scaling_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=key):
        decoder_from_llama({**LLAMA, key: value}, "text_config")
