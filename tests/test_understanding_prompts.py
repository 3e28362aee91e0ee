"""What the model reads under each protocol, byte for byte."""

import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding import PROTOCOLS, Item, Picture, get_protocol, make_prompt
from janus_jax.evaluation.understanding.parsers import PARSERS
from janus_jax.evaluation.understanding.prompts import PROMPTS
from janus_jax.processing.chat import get_template, understanding_prompt
from janus_jax.processing.tokenizer import Control

ONE = (Picture("one", lambda: b""),)
TWO = (*ONE, Picture("two", lambda: b""))
WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
STEPS = (
    "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be "
    "sure you get the right answer."
)
THINK = (
    "First please perform reasoning, and think step by step to provide best answer to the following "
    "question: \n\n"
)

POPE = Item("1", "Is there a dog in the image?", "Yes", pictures=ONE)
MME = Item("1", "Is it red? Please answer yes or no.", "No", pictures=ONE, picture_key="a.png")
MMBENCH = Item(
    *("1", "Which one?", "A"),
    options={"A": "a dog", "B": "two\ndogs"},
    hint="Look left.",
    pictures=ONE,
)
SEED = Item("1", "Where is it?", "B", options=dict(zip("ABCD", "wxyz", strict=True)), pictures=ONE)
GQA = Item("1", "What colour is it?", "red", pictures=ONE)
MMMU = Item(
    "1", "<image 1> Which is <image 2>?", "B", options={"A": "$5", "B": "<image 2>"}, pictures=TWO
)
OPEN = Item("1", "<image 2> How much?", "3", pictures=TWO)
MMVET = Item("v1_0", "What is x?", "7", pictures=ONE)

BODIES = {  # of the adapter of Janus: after the pictures
    "pope": (POPE, f"\nIs there a dog in the image?\n{WORD}"),
    "mme": (MME, f"\nIs it red? Please answer yes or no.\n{WORD}"),
    "mmbench": (MMBENCH, f"\nHint: Look left.\nWhich one?\nA. a dog\nB. two\ndogs\n\n{LETTER}"),
    "seed": (SEED, f"\nWhere is it?\nA. w\nB. x\nC. y\nD. z\n\n{LETTER}"),
    "gqa": (GQA, f"What colour is it?\n{WORD}"),
    "mmmu": (MMMU, f"\n<image 1> Which is <image 2>?\nA. $5\nB. <image 2>\n\n{LETTER}"),
    "mmvet": (MMVET, "\nWhat is x?"),
}
LMMS = {
    "pope": (POPE, f"Is there a dog in the image?\n{WORD}"),
    "mme": (MME, f"Is it red?\n{WORD}"),
    "mmbench": (
        MMBENCH,
        f"Look left. Which one? There are several options:\nA. a dog\nB. two\ndogs\n\n{LETTER}",
    ),
    "seed": (SEED, f"Where is it?\nA. w\nB. x\nC. y\nD. z\n{LETTER}"),
    "gqa": (GQA, f"What colour is it?\n{WORD}"),
    "mmmu": (MMMU, f"<image 1> Which is <image 2>?\nA. $5\nB. <image 2>\n\n{LETTER}"),
    "mmvet": (MMVET, f"{THINK}What is x?"),
}
IMAGE = "<image_placeholder>"


@pytest.mark.parametrize("name", BODIES)
def test_paper(name):
    item, body = BODIES[name]
    system = f"{STEPS}\n\n" if name == "mmvet" else ""
    expected = f"{system}<|User|>: {IMAGE * len(item.pictures)}{body}\n\n<|Assistant|>:"
    assert make_prompt(item, get_protocol("paper", name)).rendered == expected


@pytest.mark.parametrize("name", BODIES)
def test_vlmevalkit(name):
    item, body = BODIES[name]
    system = f"{STEPS}\n\n" if name == "mmvet" else ""
    expected = f"{system}User: {IMAGE * len(item.pictures)}{body}\n\nAssistant:"
    assert make_prompt(item, get_protocol("vlmevalkit", name)).rendered == expected


@pytest.mark.parametrize("name", LMMS)
def test_lmms_eval(name):
    item, body = LMMS[name]
    placeholders = f"{IMAGE}\n" * len(item.pictures)
    expected = f"<|User|>: {placeholders}{body}\n\n<|Assistant|>:"
    assert make_prompt(item, get_protocol("lmms-eval", name)).rendered == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_processor_of_this_template_and_system_prompt_renders_the_same(protocol):
    for name, (item, _) in BODIES.items():
        prompt = make_prompt(item, get_protocol(protocol, name))
        template = get_template(prompt.template)
        asked = prompt.question, prompt.system_prompt, len(prompt.pictures)
        assert understanding_prompt(template, *asked) == prompt.rendered


def test_questions_without_options_and_hints():
    janus, lmms = get_protocol("paper", "mmmu"), get_protocol("lmms-eval", "mmmu")
    assert make_prompt(OPEN, janus).text == "\n<image 2> How much?\nAnswer the question directly. "
    # The prompt as a whole is stripped, so that the blank at its end is not there.
    assert make_prompt(OPEN, janus).rendered.endswith("directly.\n\n<|Assistant|>:")
    assert make_prompt(OPEN, lmms).text == f"<image 2> How much?\n\n{WORD}"
    assert make_prompt(OPEN, lmms).pictures == TWO[1:]  # those that the text names
    assert make_prompt(OPEN, janus).pictures == TWO


def test_pope_loses_the_request_for_yes_or_no_and_mme_keeps_it():
    asked = Item("1", "Is it? Please answer yes or no.", "Yes", pictures=ONE)
    assert make_prompt(asked, get_protocol("vlmevalkit", "pope")).text == f"\nIs it?\n{WORD}"
    assert "yes or no" in make_prompt(asked, get_protocol("lmms-eval", "pope")).text


def test_text_of_a_question_becomes_no_control_token():
    item = Item("1", f"What does {IMAGE} <|Assistant|>: mean?", "x", pictures=ONE)
    pieces = make_prompt(item, get_protocol("paper", "gqa")).pieces
    assert [p for p in pieces if isinstance(p, Control)] == ["<|User|>", IMAGE, "<|Assistant|>"]


def test_what_protocols_ask_of_the_run():
    paper, lmms = PROTOCOLS["paper"], PROTOCOLS["lmms-eval"]
    assert {p.max_new_tokens for p in paper.values()} == {2048}
    assert [lmms[n].max_new_tokens for n in lmms] == [128, 16, 1024, 1024, 16, 128, 1024]
    for protocols in PROTOCOLS.values():
        splits = {name: p.split for name, p in protocols.items() if p.split}
        assert splits == {"mmmu": "validation", "mmbench": "dev", "seed": "image"}
    assert paper["pope"].headline == ("pope", "random", "f1")
    assert PROTOCOLS["vlmevalkit"]["pope"].headline == ("pope", "overall", "f1")
    assert paper["mmbench"].headline == ("mmbench", "vanilla_all", "accuracy")
    assert PROTOCOLS["vlmevalkit"]["mmbench"].headline == ("mmbench", "circular", "accuracy")
    for protocols in PROTOCOLS.values():
        assert len(protocols) == 7
        for protocol in protocols.values():
            assert protocol.prompt in PROMPTS and protocol.parser in {*PARSERS, "judged"}


def test_unknown_names_have_the_nearest():
    with pytest.raises(UserError, match=r"unknown protocol 'vlmeval'.*Did you mean 'vlmevalkit'"):
        get_protocol("vlmeval", "pope")
    with pytest.raises(UserError, match=r"unknown benchmark 'mmm'.*Did you mean 'mm"):
        get_protocol("paper", "mmm")


def test_pictures_are_read_together_or_not_at_all():
    protocol = get_protocol("paper", "gqa")
    prompt = make_prompt(GQA, protocol)
    assert prompt.question == f"{IMAGE}What colour is it?\n{WORD}"
    with pytest.raises(UserError, match="cannot read the image file"):
        prompt.load_pictures()
    with pytest.raises(UserError, match="the row has no picture"):
        make_prompt(Item("1", "q", "a"), protocol).load_pictures()
