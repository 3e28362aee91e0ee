"""The engine of the server on a model: the same pictures and answers as without it, alone and beside others."""

import queue

import numpy as np
import pytest
from dummies_model import GUIDED, LONGER, make_janus, picture
from serving_engine_client import WAIT, ask, pictures, text, user

from janus_jax.errors import UserError
from janus_jax.serving.engine import ServingEngine
from janus_jax.serving.jobs import ChatJob, DrawJob, Failed, Finished, Message, Preview

pytestmark = pytest.mark.heavy
SEEN = np.asarray(picture(0))


@pytest.fixture(scope="module")
def janus():
    return make_janus(LONGER, fields=GUIDED)


@pytest.fixture(scope="module")
def engine(janus):
    """Of three places, so that one job alone is in the program of three."""
    sizes = dict(longest_prompt=30, context=130, most_pictures=1)
    made = ServingEngine(janus, sizes=[3], **sizes)
    yield made
    made.close()


def together(now, before):
    """Whether rows shared a block."""
    return now["block_rows"] - before["block_rows"] > now["blocks"] - before["blocks"]


def test_pictures_are_those_of_generate_alone_and_beside_others(janus, engine):
    prompt, seed = "a red cat", 2**32 - 1
    first, second = janus.generate_arrays(prompt, 2, seed)
    assert (first != second).any()
    before = engine.stats()["draw"]
    (alone,) = ask(engine, DrawJob(prompt, seed=seed))
    settings = dict(cfg_weight=3.0, temperature=0.5)
    both = ask(engine, DrawJob(prompt, seed=seed), DrawJob("a dog on the left", **settings))
    assert together(engine.stats()["draw"], before)
    other = janus.generate_arrays("a dog on the left", 2, **settings)[:1]
    np.testing.assert_array_equal(pictures(alone), first[None])
    np.testing.assert_array_equal(pictures(both[0]), first[None])
    np.testing.assert_array_equal(pictures(both[1]), other)
    (several,) = ask(engine, DrawJob(prompt, n=2, seed=seed))
    np.testing.assert_array_equal(pictures(several), [first, second])
    ids = len(janus.processor.generation_ids(prompt))
    assert several[-1] == Finished("stop", ids, 2 * LONGER.vq.num_codes)


def test_previews_are_of_what_is_drawn_and_white(janus, engine):
    events, without = ask(engine, DrawJob("a cat", previews=3), DrawJob("a dog"))
    previews = [event for event in events if isinstance(event, Preview)]
    assert [type(event).__name__ for event in events] == ["Preview"] * 3 + ["Picture", "Finished"]
    assert [type(event).__name__ for event in without] == ["Picture", "Finished"]
    total, side = LONGER.vq.num_codes, LONGER.vq.downsample
    codes = janus.sample("a cat", 2).codes
    for one, done in zip(previews, (4, 8, 12), strict=True):
        assert (one.index, one.total, one.done) == (0, total, done)
        open_codes = np.arange(total) >= one.done
        expected = janus.decode_codes_arrays(np.where(open_codes, 0, codes))[0]
        undrawn = np.kron(open_codes.reshape(4, 4), np.ones((side, side))) > 0
        assert (one.picture[undrawn] == 255).all()
        np.testing.assert_array_equal(one.picture[~undrawn], expected[~undrawn])


def test_greedy_answers_are_those_of_answer_alone_and_beside_others(janus, engine):
    question = "is it a red dog ?"
    want = janus.answer(SEEN, question, max_new_tokens=20)
    assert want
    job = ChatJob((user(question, SEEN),), max_tokens=20)
    (alone,) = ask(engine, job)
    before = engine.stats()["chat"]
    both = ask(engine, job, ChatJob((user("is it a car ?", SEEN[::-1]),), temperature=1.0))
    assert together(engine.stats()["chat"], before)
    assert text(alone) == text(both[0]) == want
    assert alone[-1].prompt_tokens == len(janus.processor.understanding_ids(question))


def test_a_conversation_goes_on_after_its_answers(janus, engine):
    talk = janus.conversation()
    talk.add("what is it ?", "a cat", [SEEN])
    want = "".join(talk.ask("on the left ?", max_new_tokens=20))
    turns = user("what is it ?", SEEN), Message("assistant", "a cat"), user("on the left ?")
    (events,) = ask(engine, ChatJob(turns, max_tokens=20))
    assert text(events) == want


def test_a_system_message_stands_for_the_one_of_the_checkpoint(janus, engine):
    system, question = "yes no yes no", "what is it ?"
    messages = (Message("system", system), user(question, SEEN))
    (events,) = ask(engine, ChatJob(messages, max_tokens=20))
    other = janus.with_prompts("deepseek", system)
    assert text(events) == other.answer(SEEN, question, max_new_tokens=20)
    assert events[-1].prompt_tokens == len(other.processor.understanding_ids(question))


def test_an_answer_ends_at_its_limit_and_at_a_stop_text(janus, engine):
    question = "a red dog on the right"
    whole = janus.answer(SEEN, question, max_new_tokens=12)
    word = whole.split()[2]
    cut, stopped = ask(
        engine,
        ChatJob((user(question, SEEN),), max_tokens=12),
        ChatJob((user(question, SEEN),), max_tokens=12, stop=(word,)),
    )
    assert text(cut) == whole
    assert text(stopped) == janus.answer(SEEN, question, max_new_tokens=12, stop=word)
    assert (cut[-1].reason, cut[-1].completion_tokens) == ("length", 12)
    assert stopped[-1].reason == "stop"
    (longest,) = ask(engine, ChatJob((user("a cat", SEEN),), max_tokens=10**6, temperature=2.0))
    assert longest[-1].completion_tokens <= 40


def test_a_cancelled_drawing_is_not_drawn_to_its_end(engine):
    before, ended, seen = engine.stats()["draw"], queue.Queue(), []
    tickets = queue.Queue()

    def on_event(event):
        seen.append(event)
        if isinstance(event, Preview):
            tickets.get(timeout=WAIT).cancel()
        else:
            ended.put(event)

    tickets.put(engine.submit(DrawJob("a cat", previews=8), on_event))
    assert ended.get(timeout=WAIT).kind == "cancelled"
    assert [type(event) for event in seen] == [Preview, Failed]
    assert engine.stats()["draw"]["made"] == before["made"]


WRONG = [
    (DrawJob(""), "the prompt is empty"),
    (DrawJob("cat " * 40), "prompt is too long: .* the limit of this server is 30"),
    (DrawJob("cat " * 900), "the prompt is too long: .* the limit of this model"),
    (DrawJob("a cat", n=0), "n, the number of pictures, must be >= 1"),
    (DrawJob("a cat", n=10**6), "asks for 1000000 at once"),
    (DrawJob("a cat", seed=2**32), "seed must be between"),
    (DrawJob("a cat", cfg_weight=float("nan")), "cfg_weight must be a finite number"),
    (DrawJob("a cat", top_k=0), "top_k must be between 1 and 40"),
    (DrawJob("a cat", previews=-1), "previews must be >= 0"),
    (ChatJob(()), "must end with a message of the user"),
    (ChatJob((user("a"), Message("assistant", "b"))), "must end with a message of the user"),
    (ChatJob((user("a"), user("b"), user("c"))), "message 2 must be of the assistant"),
    (ChatJob((Message("system", "a"), Message("robot", "b"))), "message 2 must be of the user"),
    (ChatJob((Message("system", "a", (SEEN,)), user("b"))), "message 1: .* has no pictures"),
    (ChatJob((user("a"), Message("assistant", " "), user("b"))), "message 2: the answer is empty"),
    (ChatJob((user("a"), Message("assistant", "b", (SEEN,)), user("c"))), "message 2: .* pictures"),
    (ChatJob((user("a", SEEN, SEEN),)), "has 2 pictures, the limit of this server is 1"),
    (ChatJob((user("a <image_placeholder>"),)), "message 1: the message has 1"),
    (ChatJob((user("cat " * 130),)), "conversation is too long: .* limit of this server is 129"),
    (ChatJob((user("a"),), max_tokens=0), "max_tokens must be >= 1"),
    (ChatJob((user("a"),), temperature=-1), "temperature must be a finite number"),
    (ChatJob((user("a"),), top_p=2), "top_p must be above 0"),
    (ChatJob((user("a"),), stop=("",)), "stop must be texts that are not empty"),
    (ChatJob((user("a", np.zeros((3, 3), np.float32)),)), "the image array"),
    ("a cat", "takes no str"),
]


@pytest.mark.parametrize(("job", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_can_never_be_done_is_refused_at_once(engine, job, message):
    with pytest.raises(UserError, match=message) as error:
        engine.submit(job, lambda event: pytest.fail("there is no job"))
    assert "\n" not in str(error.value)
