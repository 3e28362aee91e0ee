"""Prompt strings against the official processor, and the layout of ids."""

import json
from pathlib import Path

import pytest

from janus_jax.errors import UserError
from janus_jax.processing import Processor, ProcessorConfig, build_word_tokenizer
from janus_jax.processing.chat import (
    UNDERSTANDING_SYSTEM_PROMPT,
    generation_prompt,
    get_template,
    render,
    understanding_prompt,
)
from janus_jax.processing.tokenizer import IMAGE

CASES = json.loads((Path(__file__).parent / "data/golden/chat_prompts.json").read_text())


@pytest.fixture(scope="module")
def processor():
    config = ProcessorConfig(num_image_tokens=4, num_codes=6)
    return Processor(config, build_word_tokenizer(["a red cat what is it ?"]))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['sft_format']}-{c['case']}")
def test_rendered_prompt_equals_the_official_one(case):
    template = get_template(case["sft_format"])
    turns = [turn["content"] for turn in case["conversation"]]
    if case["case"] == "generation":
        assert generation_prompt(template, turns[0]) == case["rendered"]
        return
    assert render(template, turns, case["system_prompt"]) == case["rendered"]
    if case["case"] == "understanding":
        assert case["system_prompt"] == UNDERSTANDING_SYSTEM_PROMPT
        question = turns[0].removeprefix(f"{IMAGE}\n")
        rendered = understanding_prompt(template, question, UNDERSTANDING_SYSTEM_PROMPT)
        assert rendered == case["rendered"]


def test_generation_ids_start_with_bos_and_end_with_boi(processor):
    ids = processor.generation_ids("a red cat")
    tok = processor.tokenizer
    assert (ids[0], ids[-1]) == (tok.bos_id, tok.boi_id)
    assert processor.unconditional_ids(ids) == [
        tok.bos_id,
        *[tok.pad_id] * (len(ids) - 2),
        tok.boi_id,
    ]


def test_image_slots_are_wrapped(processor):
    tok = processor.tokenizer
    ids = processor.understanding_ids("what is it?")
    start = ids.index(tok.boi_id)
    assert ids[start : start + 6] == [tok.boi_id, *[tok.image_id] * 4, tok.eoi_id]
    assert ids.count(tok.image_id) == 4


def test_wrong_number_of_placeholders(processor):
    with pytest.raises(UserError, match="2 <image_placeholder>"):
        processor.understanding_ids(f"{IMAGE} {IMAGE} what is it?")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_text(processor, text):
    with pytest.raises(UserError, match="prompt is empty"):
        processor.generation_ids(text)
    with pytest.raises(UserError, match="question is empty"):
        processor.understanding_ids(text)


def test_config_round_trip_and_unknown_names():
    config = ProcessorConfig(template="deepseek_old", cfg_weight=2.0)
    assert ProcessorConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match=r"'templat'.*Did you mean 'template'"):
        ProcessorConfig.from_dict({"templat": "deepseek"})
    with pytest.raises(UserError, match="deepseek_old"):
        get_template("deepseek-old")
