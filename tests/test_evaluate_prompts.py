"""The tokens that a model is asked are those of the whole prompt of a protocol, template and system prompt too."""

import pytest
from benchmark_files import write_layout
from dummies_tokenizers import byte_level

from janus_jax import Janus
from janus_jax.errors import UserError
from janus_jax.evaluation import ModelPredictor
from janus_jax.evaluation.understanding import PROTOCOLS, get_protocol, make_prompt, open_benchmark
from janus_jax.processing import Processor, ProcessorConfig


@pytest.fixture(scope="module")
def janus():
    """A model that has nothing but a tokenizer, and a template and system prompt of its own."""
    model = Janus.__new__(Janus)
    config = ProcessorConfig(template="deepseek", system_prompt="Its own.", num_image_tokens=3)
    model.processor = Processor(config, byte_level())
    return model


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("benchmark", ["pope", "mme", "mmbench", "seed", "gqa", "mmmu", "mmvet"])
def test_a_question_becomes_the_tokens_of_the_protocols_prompt(
    tmp_path, janus, benchmark, protocol
):
    rules = get_protocol(protocol, benchmark)
    (path,), _ = write_layout(benchmark, "tsv", tmp_path)
    processor = janus.with_prompts(rules.template, rules.system_prompt).processor
    for item in open_benchmark(benchmark, path, split=rules.split):
        prompt = make_prompt(item, rules)
        ids = processor.understanding_ids(prompt.question, len(prompt.pictures))
        whole = [processor.tokenizer.bos_id, *processor.tokenizer.encode_pieces(prompt.pieces)]
        assert ids == processor.expand_image_slots(whole)
    assert janus.processor.config.system_prompt == "Its own."  # the model itself stays as it was


def test_a_predictor_keeps_its_settings_and_says_what_it_cannot(janus):
    asked = ModelPredictor(janus, {"cfg_weight": 2.0}, {"top_p": 0.5}).prompting(
        "deepseek_old", "S"
    )
    assert (asked._drawing, asked._answering) == ({"cfg_weight": 2.0}, {"top_p": 0.5})
    assert asked._model.processor.config.template == "deepseek_old"
    with pytest.raises(UserError, match="chat template"):
        ModelPredictor(janus).prompting("depseek")
    with pytest.raises(UserError, match="cannot be asked in the chat template"):
        ModelPredictor(object()).prompting("deepseek")
