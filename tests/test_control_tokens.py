"""What people write never becomes control tokens, and what they wrote before keeps its ids."""

import json

import numpy as np
import pytest
from dummies_tokenizers import byte_level
from released_tokenizers import CHAT, official_tokenizer
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from janus_jax.errors import UserError
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer, build_word_tokenizer
from janus_jax.processing import sequence as seq
from janus_jax.processing.chat import TEMPLATES, render, understanding_prompt
from janus_jax.processing.tokenizer import (
    BOI,
    BOS,
    EOI,
    EOS,
    IMAGE,
    SPECIAL_TOKENS,
    USER,
    Control,
)

WORDS = ["a", "red", "cat", "what", "is", "it", "?", ".", "left", "user"]


def unigram():
    """Its vocabulary has the control tokens as words, and they are the most likely ones."""
    words = [("<unk>", 0.0), *((t, 0.0) for t in (*SPECIAL_TOKENS, "</s>"))]
    words += [(c, -3.0) for c in "▁acredt?:<>|/"]
    backend = Backend(models.Unigram(words, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([*SPECIAL_TOKENS, "</s>", "<unk>"])
    return Tokenizer(backend)


TOKENIZERS = {
    "1b": lambda: official_tokenizer("1b"),
    "7b": lambda: official_tokenizer("7b"),
    "words": lambda: build_word_tokenizer(WORDS),
    "bytes": byte_level,
    "not special": lambda: byte_level(special=False),
    "normalized": lambda: byte_level(special=False, normalizer=normalizers.NFKC()),
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def places(tokenizer):
    """Everything that turns somebody's text into ids."""
    make = lambda **fields: Processor(ProcessorConfig(num_image_tokens=3, **fields), tokenizer)
    plain, old = make(), make(template="deepseek_old")
    return [
        plain.generation_ids,
        plain.understanding_ids,
        lambda text: plain.understanding_ids(text, 2),
        plain.next_question_ids,
        lambda text: plain.next_question_ids(text, 1),
        plain.answer_ids,
        plain.text_ids,
        lambda text: plain.text_ids("a cat", picture=text),
        lambda text: make(system_prompt=text).text_ids("a cat"),
        lambda text: make(system_prompt=text).understanding_ids("a cat"),
        old.understanding_ids,
        tokenizer.encode_text,
    ]


def control_tokens(tokenizer):
    """Added tokens by id, but for single characters and words, which are text."""
    added = tokenizer._backend.get_added_tokens_decoder()
    text = ("panda", "   ", "<unk>")
    return {i: t.content for i, t in added.items() if len(t.content) > 1 and t.content not in text}


def wide(text):
    """The same in full-width letters, which NFKC makes the usual ones."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def test_typed_control_tokens_are_text_or_refused(tokenizer):
    """Every added token, alone, inside of words, doubled, half, and wide."""
    control = control_tokens(tokenizer)
    assert len(control) >= len(SPECIAL_TOKENS)
    typed = [t for t in control.values() if "reserved" not in t or t.endswith("7>")]
    refused = total = 0
    for place in places(tokenizer):
        framed = [i for i in place("a cat") if i in control]
        for token in typed:
            for text in (
                token,
                f"a{token}cat",
                f" {token}{token}\n",
                f"{token[:-1]}{token}",
                wide(token),
            ):
                total += 1
                try:
                    ids = place(text)
                except UserError as error:
                    assert "\n" not in str(error)
                    refused += 1
                    continue
                assert [i for i in ids if i in control] == framed, (token, text)
    # All that is refused is a placeholder without a picture, and what a vocabulary cannot spell.
    spelled = not isinstance(tokenizer._backend.model, models.Unigram)
    assert refused < total * (0.1 if spelled else 0.9)


@pytest.mark.parametrize("layout", ["1b", "7b"])
def test_text_that_looks_like_control_tokens_is_kept_whole(layout):
    tokenizer = official_tokenizer(layout)
    for text in (
        BOS,
        f"a{USER}: b\n\n{BOI}{IMAGE}{EOI} smørrebrød÷",
        f"{EOS}<|ref|>两只猫<reserved 7>",
    ):
        ids = tokenizer.encode_text(text)
        assert tokenizer.decode(ids) == text or layout == "7b"
        pieces = [tokenizer._backend.id_to_token(i) for i in ids]
        assert not set(pieces) & {BOS, EOS, USER, BOI, EOI, IMAGE, "<|ref|>", "<reserved 7>"}
        # Letters that are added tokens are text, and stay what they are.
        assert ("ø" in pieces) == (layout == "7b" and "ø" in text)


def test_words_that_are_added_keep_their_id():
    tokenizer = byte_level()
    for text in ("a panda", f"a panda {USER}", f"   {EOS}smør"):
        ids, plain = tokenizer.encode_text(text), tokenizer.encode(text)
        for word in ("panda", "   ", "ø"):
            assert ids.count(tokenizer.token_id(word)) == text.count(word)
        assert (ids == plain) == (USER not in text and EOS not in text)


ADDED = [
    "New York",
    "foo-bar",
    "\n",
    "\t",
    "\u200d",
    "\n\n",
    "don't",
    "->",
    "<=",
    ": ",
    "€€",
    "user",
]
ADDED += [
    "C++",
    "[]",
    "||",
    "<image",
    "placeholder>",
    "image_placeholder",
    "x>y",
    "\r\n",
    "👩\u200d🚀",
]
FRAMES = [
    "<tool>",
    "[INST]",
    "</s>",
    "{{user}}",
    "|pad|",
    "<|im",
    "<|x|>",
    "<｜a｜>",
    wide("<tool>"),
]
FRAMES += ["<IMAGE_PLACEHOLDER>", f" {IMAGE}", f"a{IMAGE}b", f"{USER}:", "\n<tool>\n", "<<SYS>>"]


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("layout", ["1b", "bytes"])
def test_what_a_user_added_is_used_as_the_tokenizer_itself_does(layout, normalized):
    for words in (ADDED, *([word] for word in ADDED if layout == "bytes")):
        tokenizer = TOKENIZERS[layout]()
        tokenizer._backend.add_tokens([AddedToken(w, normalized=normalized) for w in words])
        processor = Processor(ProcessorConfig(num_image_tokens=2), tokenizer)
        for word in words:
            text = f"in {word} now, a{word}b {word}{word} <image\n\nit"
            rendered = tokenizer.encode(render(processor.template, [text, ""]) + BOI)
            assert processor.generation_ids(text) == [tokenizer.bos_id, *rendered]
            if words == [word]:
                assert tokenizer.token_id(word) in rendered
            rendered = tokenizer.encode(understanding_prompt(processor.template, text))
            rendered = processor.expand_image_slots([tokenizer.bos_id, *rendered])
            assert processor.understanding_ids(text) == rendered


@pytest.mark.parametrize("normalized", [True, False])
def test_frames_are_none_when_they_are_typed_though_not_marked_as_special(normalized):
    tokenizer = byte_level()
    added = [AddedToken(t, normalized=normalized) for t in (*FRAMES, *ADDED)]
    tokenizer._backend.add_tokens(added)
    control = {tokenizer.token_id(token) for token in (*FRAMES, *SPECIAL_TOKENS)}
    assert None not in control
    for place in places(tokenizer):
        framed = [i for i in place("a cat") if i in control]
        for token in (*FRAMES, *SPECIAL_TOKENS):
            for text in (token, f"a{token}b", f"->{token}\n\n", f"New York{token}{token[:-1]}"):
                try:
                    ids = place(text)
                except UserError as error:
                    assert "placeholder" in str(error)
                    continue
                assert [i for i in ids if i in control] == framed, (token, text)


def random_texts(count):
    rng = np.random.default_rng(0)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyzABCDEFG",
        "      ",
        ".,;:?!'\"-()<>|/_[]{}@#$%",
        "0123456789",
        "\n\r\t",
        "红色的猫在公园里两只日本語のテキスト한국어",
        "éàüøöúÿõ÷ûýÀùÁþñß",
        "🐱🚗👩\u200d🇩🇪",
        "\u200b\u3000\u00a0\u2028",
        "<|｜▁>",
    ]
    words = ["User:", "Assistant:", "user", "<image ", "placeholder>", "<|User ", "|Assistant|>"]
    for _ in range(count):
        runs = []
        for _ in range(rng.integers(1, 25)):
            letters = list(alphabets[rng.integers(len(alphabets))])
            runs.append("".join(rng.choice(letters, rng.integers(1, 5))))
            if rng.random() < 0.1:
                runs.append(str(rng.choice(words)))
        text = "".join(runs)
        yield text if text.strip() else "a"


@pytest.mark.parametrize("layout", ["1b", "7b", "words"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_normal_prompts_have_the_ids_of_the_whole_string(layout, template):
    """And so they have where the string is encoded in pieces, because of a later one."""
    tokenizer = TOKENIZERS[layout]()
    config = ProcessorConfig(template, "You are a helpful assistant.", num_image_tokens=2)
    processor = Processor(config, tokenizer)
    whole = lambda text: processor.expand_image_slots([tokenizer.bos_id, *tokenizer.encode(text)])
    for text in random_texts(300):
        rendered = understanding_prompt(processor.template, text, config.system_prompt)
        assert processor.understanding_ids(text) == whole(rendered)
        rendered = render(processor.template, [text, ""]) + BOI
        assert processor.generation_ids(text) == whole(rendered)
        answer = tokenizer.encode(f" {text.strip()}")
        assert processor.answer_ids(text) == [*answer, tokenizer.eos_id]
        pieces = [f": {text}\n\n", Control(EOS), EOS]
        assert tokenizer.encode_pieces(pieces)[: -len(tokenizer.encode_text(EOS))] == [
            *tokenizer.encode(f": {text}\n\n"),
            tokenizer.eos_id,
        ]


@pytest.mark.parametrize("layout", ["1b", "7b"])
def test_official_prompts_in_pieces_are_the_official_ids(layout):
    tokenizer = official_tokenizer(layout)
    tokenizer.encode = lambda text: []  # whatever the whole string gives: each piece on its own
    for case in json.loads(CHAT.read_text()):
        if case["tokenizer"] != layout or case["case"] not in ("generation", "understanding"):
            continue
        processor = Processor(ProcessorConfig(case["sft_format"], case["system_prompt"]), tokenizer)
        text = case["conversation"][0]["content"].removeprefix(f"{IMAGE}\n")
        make = {
            "generation": processor.generation_ids,
            "understanding": processor.understanding_ids,
        }
        assert make[case["case"]](text) == case["input_ids"]


def test_a_placeholder_stands_for_a_picture_of_its_own_message():
    tokenizer = official_tokenizer("1b")
    processor = Processor(ProcessorConfig(num_image_tokens=3), tokenizer)
    count = lambda ids: ids.count(tokenizer.image_id)
    assert count(processor.understanding_ids(f"is {IMAGE} like {IMAGE}?", 2)) == 6
    assert count(processor.next_question_ids(f"is it {IMAGE}?", 1)) == 3
    assert count(processor.next_question_ids("is it?", 2)) == 6
    for ask in (processor.text_ids, processor.next_question_ids):
        with pytest.raises(UserError, match="1 <image_placeholder>, but there are 0 images"):
            ask(f"what is {IMAGE}?")
    with pytest.raises(UserError, match="2 <image_placeholder>, but there are 1 images"):
        processor.next_question_ids(f"{IMAGE}{IMAGE}?", 1)


def test_control_tokens_in_words_that_nobody_knows_are_listed():
    tokenizer = build_word_tokenizer(WORDS)
    assert tokenizer.unknown_words(f"a {USER} cat {IMAGE}") == ["<", "|", ">"]


@pytest.mark.parametrize("text", ["\ud800", "a red \udfff cat", "a\ud83d"])
def test_half_a_character_is_a_user_error(tokenizer, text):
    for place in (*places(tokenizer), tokenizer.encode, build_word_tokenizer(WORDS).unknown_words):
        with pytest.raises(UserError, match=r"half a character .*U\+D[8F]") as error:
            place(text)
        str(error.value).encode()  # and the message itself can be printed


def test_text_that_no_token_can_write_is_a_user_error():
    backend = Backend(models.WordLevel({"a": 0, "cat": 1}))  # knows no `<unk>`
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    assert Tokenizer(backend).encode_text("a cat") == [0, 1]
    with pytest.raises(UserError, match="cannot encode"):
        Tokenizer(backend).encode_text(f"a {USER} cat")


def test_a_control_is_one_only_as_long_as_the_program_says_so():
    assert (
        type(Control(BOI) + "a") is type(f"{Control(BOI)}") is type("".join([Control(BOI)])) is str
    )


# Training sequences


def test_answers_have_no_image_slots():
    images = np.zeros((1, 4, 4, 3), np.uint8)
    features = seq.conversation([([1, 9, 9, 31], [40, 9, 2]), ([50], [9, 2])], 9, images, 8)
    assert features["token_types"].tolist() == [0, 1, 1] + [0] * 7


@pytest.mark.parametrize("prompt, pictures", [([1, 9, 31], 0), ([1, 9, 31], 2), ([1, 31], 1)])
def test_slots_that_do_not_belong_to_pictures_are_refused(prompt, pictures):
    with pytest.raises(UserError, match=r"image positions for \d picture"):
        seq.conversation([(prompt, [40, 2])], 9, np.zeros((pictures, 4, 4, 3), np.uint8), 8)
