"""Any conversation: its ids decode back, its turns concatenate, and no text becomes a control token."""

from dummies_tokenizers import byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from released_tokenizers import official_tokenizer

from janus_jax.processing import Processor, ProcessorConfig
from janus_jax.processing.chat import TEMPLATES, render_pieces
from janus_jax.processing.tokenizer import ASSISTANT, IMAGE, SPECIAL_TOKENS, USER, Control

SETTINGS = settings(max_examples=50, deadline=None, derandomize=True)
TOKENIZERS = {"bytes": byte_level(words=()), "1b": official_tokenizer("1b")}
# Without surrogates, which have ids in no vocabulary; tests of errors have them.
letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tokens = st.sampled_from([t for t in SPECIAL_TOKENS if t != IMAGE] + ["<|", "｜>", "User", "\n\n"])
said = st.lists(st.one_of(letters, tokens), min_size=1, max_size=6).map("".join)
said = said.filter(lambda text: text.strip() and IMAGE not in text)
conversations = st.lists(st.tuples(said, said), min_size=1, max_size=3)
settings_of_prompts = (
    st.sampled_from(sorted(TOKENIZERS)),
    st.sampled_from(sorted(TEMPLATES)),
    st.one_of(st.just(""), said),
)


def make(name, template, system):
    config = ProcessorConfig(template, system, num_image_tokens=3)
    return Processor(config, TOKENIZERS[name])


def controls(processor, ids):
    wanted = {processor.tokenizer.token_id(t) for t in SPECIAL_TOKENS} - {None}
    return [i for i in ids if i in wanted]


def ids_of(processor, turns, num_images):
    """A conversation as it is held: question, answer, question, ..."""
    pieces = []
    for number, (question, answer) in enumerate(turns):
        if number:
            pieces.append(processor.next_question_ids(question))
        else:
            pieces.append(processor.understanding_ids(question, num_images))
        pieces.append(processor.answer_ids(answer))
    return pieces


@SETTINGS
@given(*settings_of_prompts, conversations, st.integers(1, 2))
def test_turns_concatenate(name, template, system, turns, num_images):
    processor = make(name, template, system)
    whole = [text.strip() for turn in turns for text in turn]
    contents = [[text] for text in whole]
    contents[0] = [Control(IMAGE), "\n"] * num_images + [turns[0][0]]
    pieces = render_pieces(processor.template, contents, system)
    tokenizer = processor.tokenizer
    wanted = processor.expand_image_slots([tokenizer.bos_id, *tokenizer.encode_pieces(pieces)])
    joined = [i for ids in ids_of(processor, turns, num_images) for i in ids]
    # Other tokens may meet where pieces meet; the text and the control tokens may not differ.
    assert tokenizer.decode(joined) == tokenizer.decode(wanted)
    assert controls(processor, joined) == controls(processor, wanted)
    if name == "bytes":
        assert joined == wanted


@SETTINGS
@given(*settings_of_prompts, conversations)
def test_ids_decode_back(name, template, system, turns):
    processor = make(name, template, system)
    # Control tokens are left out of decoded text; the old template's roles are text.
    user, assistant = ("", "") if template == "deepseek" else ("User", "Assistant")
    for question, answer in turns:
        ids = processor.next_question_ids(question)
        wanted = f"{user}: {question.strip()}\n\n{assistant}:"
        assert processor.tokenizer.decode(ids) == wanted
        assert processor.tokenizer.decode(processor.answer_ids(answer)) == f" {answer.strip()}"


@SETTINGS
@given(*settings_of_prompts, said)
def test_text_never_becomes_a_control_token(name, template, system, text):
    processor = make(name, template, system)
    tokenizer = processor.tokenizer
    assert controls(processor, tokenizer.encode_text(text)) == []
    roles = (USER, ASSISTANT) if template == "deepseek" else ()
    user, *assistant = map(tokenizer.require_id, roles) if roles else (None,)
    start = [tokenizer.bos_id, *([user] if roles else [])]
    assert controls(processor, processor.generation_ids(text)) == [
        *start, *assistant, tokenizer.boi_id,
    ]  # fmt: skip
    assert controls(processor, processor.text_ids(text)) == [*start, *assistant]
    slots = [tokenizer.boi_id, *[tokenizer.image_id] * 3, tokenizer.eoi_id]
    asked = controls(processor, processor.understanding_ids(text))
    assert asked == [*start, *slots, *assistant]
    assert controls(processor, processor.answer_ids(text)) == [tokenizer.eos_id]
