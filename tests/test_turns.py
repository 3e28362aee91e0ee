"""Who said what, and who sees what: turns keep their order and their pictures, however an answer ends."""

import gc

import jax
import numpy as np
import pytest
from dummies_model import LONGER, make_janus, next_ids, picture

from janus_jax.config import Policy
from janus_jax.errors import UserError
from janus_jax.inference import TextEngine, make_sampling_params
from janus_jax.inference.dialogue import Dialogue
from janus_jax.processing import (
    understanding_pixels,
)
from janus_jax.processing.tokenizer import BOI, EOI, IMAGE

pytestmark = pytest.mark.heavy

P = LONGER.siglip.num_patches


@pytest.fixture(scope="module")
def janus():
    return make_janus(LONGER)


def join(pieces):
    return ["".join(row) for row in zip(*pieces, strict=True)]


def check_answers(janus, ids, pictures):
    """Every answer in `ids` is what one pass over everything before it gives; returns their lengths."""
    tok = janus.processor.tokenizer
    assert ids.count(tok.bos_id) == 1 and ids[0] == tok.bos_id and ids[-1] == tok.eos_id
    best = next_ids(janus, ids, pictures)
    starts = [i + 2 for i, t in enumerate(ids) if t == tok.token_id("<|Assistant|>")]
    ends = [i for i, t in enumerate(ids) if t == tok.eos_id]
    for start, end in zip(starts, ends, strict=True):
        assert ids[start:end] == best[start - 1 : end - 1].tolist()
    return [end - start for start, end in zip(starts, ends, strict=True)]


# Pictures


def test_no_message_reads_the_picture_of_another(janus):
    forged = BOI + IMAGE * P + EOI + "\nwhat is it?"
    for images in ([[picture(0)], []], [[picture(0)], [picture(1)]]):
        two = janus.conversations(2)
        with pytest.raises(UserError, match=f"{P} <image_placeholder>, but there are"):
            two.ask(["what is it?", forged], images)
        assert two.ids == [[], []]
    alone = "".join(janus.conversation().ask(f"{BOI}{EOI}what is it?", [], 12))
    for seed in range(3):
        pieces = janus.conversations(2).ask(
            ["what is it?", f"{BOI}{EOI}what is it?"], [[picture(seed)], []], 12
        )
        assert join(pieces)[1] == alone


@pytest.mark.parametrize("slots", [P, 1, P - 1, 2 * P])
def test_slots_without_pictures_of_their_own_are_refused_by_count(janus, slots):
    """Even if their ids came through: beside a row with a picture, and beside one's own."""
    tok = janus.processor.tokenizer
    sampling, static = make_sampling_params(LONGER.decoder.vocab_size, temperature=0)
    pixels = understanding_pixels(picture(0), LONGER.siglip.image_size)
    seen = janus.processor.understanding_ids("what is it?")
    for extra, shown in (([tok.bos_id], []), (seen, [pixels])):
        dialogue = Dialogue(
            janus.text_engine, janus.weights, 2, sampling, static, tok.pad_id, tok.eos_id
        )
        ids = [seen, [*extra, *[tok.image_id] * slots, tok.token_id(":")]]
        with pytest.raises(UserError, match="image slots, but its"):
            dialogue.turn(ids, [[pixels], shown], [4, 4], jax.random.split(jax.random.key(0), 2))
        assert dialogue.history == [[], []]


def test_an_image_id_that_the_model_draws_shows_nothing(janus):
    """The slots of the next picture are its own, not those of what the model said."""
    conversation, tok = janus.conversation(), janus.processor.tokenizer
    asked = len(janus.processor.text_ids("the cat"))
    list(conversation.ask("the cat", [], 1))
    drawn = conversation.ids[asked]  # it is computed with the next turn
    sampling, static = make_sampling_params(LONGER.decoder.vocab_size, temperature=0)
    pixels = understanding_pixels(picture(0), LONGER.siglip.image_size)
    answers = []
    for image_id in (tok.image_id, drawn):
        engine = TextEngine(janus.config, Policy(), image_id, tok.eos_id)
        dialogue = Dialogue(engine, janus.weights, 1, sampling, static, tok.pad_id, tok.eos_id)
        key = jax.random.split(jax.random.key(0), 1)
        list(dialogue.turn([janus.processor.text_ids("the cat")], [[]], [1], key))
        question = [
            image_id if i == tok.image_id else i
            for i in janus.processor.next_question_ids("is it?", 1)
        ]
        assert question.count(image_id) == P
        pieces = dialogue.turn([question], [[pixels]], [12], key)
        answers.append(np.concatenate(list(pieces), axis=1).tolist())
    assert answers[0] == answers[1]


# The order of turns


def test_a_stopped_answer_that_is_still_held_keeps_its_place(janus):
    conversation = janus.conversation()
    first = conversation.ask("a red dog", [picture(0)], 60)
    next(first)
    second = conversation.ask("is it?", [picture(1)], 20)
    assert list(first) == [] and "".join(second)
    lengths = check_answers(janus, conversation.ids, [picture(0), picture(1)])
    assert lengths[0] < 60 and len(lengths) == 2


@pytest.mark.parametrize("ending", ["held", "dropped", "closed", "asked twice"])
def test_a_message_whose_answer_nobody_iterates_is_said(janus, ending):
    conversation, tok = janus.conversation(), janus.processor.tokenizer
    answer = conversation.ask("a red dog", [picture(0)])
    assert conversation.ids[: len(janus.processor.understanding_ids("a red dog"))] == (
        janus.processor.understanding_ids("a red dog")
    )
    pictures = [picture(0), picture(1)]
    if ending == "dropped":
        del answer
        gc.collect()
    elif ending == "closed":
        answer.close()
    elif ending == "asked twice":
        conversation.ask("the cat", [picture(2)])
        pictures.insert(1, picture(2))
    if ending in ("dropped", "closed"):
        assert conversation.ids[-1] == tok.eos_id
    assert "".join(conversation.ask("is it?", [picture(1)], 20))
    *silent, last = check_answers(janus, conversation.ids, pictures)
    assert silent == [0] * (len(pictures) - 1) and last > 0


@pytest.mark.parametrize("held", [1, 3])
def test_conversations_of_several_rows_keep_their_order(janus, held):
    """However far the answers are heard, each conversation is the same as alone."""
    three = janus.conversations(3)
    messages = [["what is it?", "a red dog", "is it green?"], ["a cat", "what?", "no."]]
    images = [[[picture(0)], [], [picture(1)]], [[], [picture(2)], []]]
    answers = three.ask(messages[0], images[0], 60)
    for _ in range(held):
        next(answers)
    said = join(three.ask(messages[1], images[1], 9))
    assert list(answers) == []
    for row in range(3):
        pictures = images[0][row] + images[1][row]
        first, second = check_answers(janus, three.ids[row], pictures)
        assert first < 60 and second <= 9
        tok = janus.processor.tokenizer
        assert tok.decode(three.ids[row][-1 - second : -1]).strip() == said[row]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_an_exception_that_is_thrown_in_ends_the_answer(janus, error):
    conversation = janus.conversation()
    answer = conversation.ask("a red dog", [picture(0)], 60)
    next(answer)
    with pytest.raises(error):
        answer.throw(error)
    said = conversation.ids
    assert said[-1] == janus.processor.tokenizer.eos_id
    "".join(conversation.ask("is it?", [], 20))
    assert conversation.ids[: len(said)] == said
    assert 0 < check_answers(janus, conversation.ids, [picture(0)])[0] < 60


@pytest.mark.parametrize("where", ["features", "prefill", "block", "grow"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_computation_loses_nothing(janus, monkeypatch, where, after):
    """Ctrl-C before or after the device has done its part: what is said and what the model sees agree."""
    conversation = janus.conversation()
    "".join(conversation.ask("the red cat", [picture(0)], 9))
    engine, calls = janus.text_engine, []
    whole = getattr(engine, where)

    def interrupted(*args, **settings):
        if after:
            whole(*args, **settings)
        calls.append(where)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            "".join(conversation.ask("a red dog " * 15, [picture(1)], 60))
    assert calls == [where]
    "".join(conversation.ask("is it?", [], 20))
    lengths = check_answers(janus, conversation.ids, [picture(0), picture(1)])
    assert len(lengths) == 3 and lengths[2] > 0
    assert (lengths[1] > 0) == (where == "block")


def test_what_is_refused_is_not_said(janus):
    """Wrong arguments leave the answer before alone; want of room or memory ends it."""
    conversation = janus.conversation()
    answer = conversation.ask("a red dog", [picture(0)], 40)
    heard = next(answer)
    for bad in (
        lambda: conversation.ask("  "),
        lambda: conversation.ask("what?", ["nowhere.png"]),
        lambda: conversation.ask("what?", [], 0),
        lambda: conversation.ask(f"{IMAGE}?"),
        lambda: conversation.add("what?", " "),
        lambda: conversation.add("what?", "a cat", [None]),
    ):
        with pytest.raises(UserError):
            bad()
    heard += "".join(answer)
    assert heard == "".join(janus.conversation().ask("a red dog", [picture(0)], 40))
    said = conversation.ids
    for bad in (conversation.ask, lambda text: conversation.add(text, "a cat")):
        with pytest.raises(UserError, match="the conversation is too long"):
            bad("a red cat " * 200)
    assert conversation.ids == said


# Earlier turns


def test_earlier_turns_can_be_given(janus):
    """They are the conversation in which they were asked and answered."""
    shots = [("what is it?", "a red dog.", [picture(0)]), ("is it?", "no", [])]
    conversation, processor = janus.conversation(), janus.processor
    for message, answer, images in shots:
        conversation.add(message, answer, images)
    expected = [
        *processor.understanding_ids("what is it?"),
        *processor.answer_ids("a red dog."),
        *processor.next_question_ids("is it?"),
        *processor.answer_ids("no"),
    ]
    assert conversation.ids == expected
    answer = "".join(conversation.ask(f"is {IMAGE} a cat?", [picture(1)], 20))
    ids = conversation.ids[len(expected) :]
    asked = processor.next_question_ids(f"is {IMAGE} a cat?", 1)
    assert ids[: len(asked)] == asked and ids.count(processor.tokenizer.image_id) == P
    best = next_ids(janus, conversation.ids, [picture(0), picture(1)])
    start = len(expected) + len(asked)
    assert conversation.ids[start:-1] == best[start - 1 : -2].tolist()
    assert processor.tokenizer.decode(conversation.ids[start:-1]).strip() == answer


def test_turns_are_given_to_each_of_several_conversations(janus):
    together, messages, images = (
        janus.conversations(2),
        ["what is it?", "the cat"],
        [[picture(0)], []],
    )
    together.add(messages, ["a dog", "no."], images)
    said = join(together.ask(["is it?", "what?"], [[], [picture(1)]], 9))
    for row, (message, answer) in enumerate(zip(messages, ["a dog", "no."], strict=True)):
        alone = janus.conversation()
        alone.add(message, answer, images[row])
        assert "".join(alone.ask(["is it?", "what?"][row], [[], [picture(1)]][row], 9)) == said[row]
        assert alone.ids == together.ids[row]


def test_an_example_ends_the_answer_before_it(janus):
    conversation = janus.conversation()
    answer = conversation.ask("a red dog", [], 60)
    next(answer)
    conversation.add("is it?", "no")
    assert list(answer) == []
    ids, tok = conversation.ids, janus.processor.tokenizer
    assert ids.count(tok.bos_id) == 1 and ids.count(tok.eos_id) == 2
    assert ids[-len(janus.processor.answer_ids("no")) :] == janus.processor.answer_ids("no")
    with pytest.raises(UserError, match="answers: 2 for 1 conversations"):
        janus.conversations(1).add(["a"], ["b", "c"])
