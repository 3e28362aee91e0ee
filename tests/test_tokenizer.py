"""Special tokens by string, the word-level tokenizer, and ids against the official processor."""

import json

import pytest
from released_tokenizers import CHAT, official_tokenizer

from janus_jax.errors import UserError
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer, build_word_tokenizer
from janus_jax.processing.chat import render
from janus_jax.processing.tokenizer import ASSISTANT, BOI, EOI, IMAGE, SPECIAL_TOKENS, USER


@pytest.fixture(scope="module")
def words():
    return build_word_tokenizer(["a", "Red", "cat", "on", "the", "left", ",", ".", "?", "close-up"])


def test_words_round_trip(words):
    ids = words.encode("A red CAT, on the left. Close-up?")
    assert words.decode(ids) == "a red cat, on the left. close-up?"
    assert Tokenizer.from_json(words.to_json()).encode("a red cat, close-up") == words.encode(
        "a red cat, close-up"
    )


def test_special_tokens_come_first_and_are_found_inside_text(words):
    assert [words.token_id(t) for t in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    ids = words.encode(f"{USER}: cat\n\n{ASSISTANT}:{BOI}")
    assert words.boi_id == ids[-1] and words.token_id(USER) == ids[0]
    assert len(ids) == 6
    assert words.decode(ids) == ": cat:"


def test_unknown_words_are_listed_once(words):
    assert words.unknown_words("a Zebra, a zebra on the éclair!") == ["zebra", "éclair", "!"]
    assert words.unknown_words(f"{IMAGE}\na red cat.") == []


def test_vocab_size_is_one_more_than_the_largest_id(words):
    assert words.vocab_size == max(words.encode("close-up")) + 1


def test_missing_special_token_is_named(words):
    raw = json.loads(words.to_json())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != EOI]
    vocab = raw["model"]["vocab"]
    hole = vocab.pop(EOI)
    with pytest.raises(UserError, match=EOI):
        Processor(ProcessorConfig(), Tokenizer.from_json(json.dumps(raw)))
    with pytest.raises(UserError, match="gaps"):  # the new token would take the id of another one
        Tokenizer.from_json(json.dumps(raw)).with_special_tokens([EOI])
    vocab[max(vocab, key=vocab.get)] = hole
    assert Tokenizer.from_json(json.dumps(raw)).with_special_tokens([EOI]).eoi_id == 21


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_broken_tokenizer_file_is_a_user_error(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="missing"):
        Tokenizer.from_file(tmp_path / "missing")


@pytest.mark.parametrize("layout", ["1b", "7b"])
def test_ids_equal_the_official_processor(layout):
    tokenizer = official_tokenizer(layout)
    cases = [c for c in json.loads(CHAT.read_text()) if c["tokenizer"] == layout]
    assert len(cases) == 10
    for case in cases:
        config = ProcessorConfig(case["sft_format"], case["system_prompt"])
        processor = Processor(config, tokenizer)
        ids = [tokenizer.bos_id, *tokenizer.encode(case["rendered"])]
        assert processor.expand_image_slots(ids) == case["input_ids"]
        first = case["conversation"][0]["content"]
        if case["case"] == "generation":
            assert processor.generation_ids(first) == case["input_ids"]
        elif case["case"] == "understanding":
            assert processor.understanding_ids(first.split("\n")[1]) == case["input_ids"]
        elif case["case"] == "two images":
            assert processor.understanding_ids(first, num_images=2) == case["input_ids"]


def test_bpe_keeps_spaces_newlines_and_chinese():
    tokenizer = official_tokenizer("1b")
    text = "Two  spaces, a\nnewline and 两只猫 in the park."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unknown_words(text) == []


@pytest.mark.parametrize("layout", ["words", "1b", "7b"])
def test_turns_in_pieces_are_the_whole_conversation(layout):
    words = build_word_tokenizer(["what is it? a red cat, left. where the"])
    tokenizer = words if layout == "words" else official_tokenizer(layout)
    processor = Processor(ProcessorConfig(system_prompt="a red cat."), tokenizer)
    turns = ["what is it?", "A red cat, left.", "where is the cat?", "left"]
    pieces = [
        *processor.understanding_ids(turns[0]),
        *processor.answer_ids(turns[1]),
        *processor.next_question_ids(turns[2]),
        *processor.answer_ids(turns[3]),
    ]
    rendered = render(
        processor.template, [f"{IMAGE}\n{turns[0]}", *turns[1:]], processor.config.system_prompt
    )
    whole = [tokenizer.bos_id, *tokenizer.encode(rendered)]
    assert processor.expand_image_slots(whole) == pieces
    with pytest.raises(UserError, match="question is empty"):
        processor.next_question_ids(" ")
