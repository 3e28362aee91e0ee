"""The places of the server's rows on a small model: prompts that are shared, lengths of blocks, lost caches."""

import numpy as np
import pytest
from dummies_model import GUIDED, LONGER, make_janus, picture
from serving_engine_client import ask, pictures, text, user

from janus_jax.errors import UserError
from janus_jax.serving.engine import WorkerThread, pool
from janus_jax.serving.engine.chatting import Chatting, prompt_lengths
from janus_jax.serving.engine.drawing import Drawing
from janus_jax.serving.engine.scheduling import Scheduler
from janus_jax.serving.jobs import ChatJob, DrawJob, Preview

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def janus():
    return make_janus(LONGER, fields=GUIDED)


@pytest.fixture(scope="module")
def drawing(janus):
    return Drawing(janus, [2], 30)


def count_calls(monkeypatch, engine, name):
    calls, function = [], getattr(engine, name)

    def counted(*args, **static):
        calls.append((args, static))
        return function(*args, **static)

    monkeypatch.setattr(engine, name, counted)
    return calls


def run(worker, *jobs):
    """Events of jobs, one list each; in this thread."""
    scheduler, seen = Scheduler([worker]), [[] for _ in jobs]
    for job, events in zip(jobs, seen, strict=True):
        scheduler.add(job, events.append)
    while not scheduler.idle:
        scheduler.tick()
    return seen


def test_pictures_of_one_prompt_share_its_prefill(monkeypatch, janus, drawing):
    calls = count_calls(monkeypatch, drawing._engine, "prefill")
    (events,) = run(drawing, DrawJob("a red cat", n=5, seed=3))
    assert len(calls) == 1
    np.testing.assert_array_equal(pictures(events), janus.generate_arrays("a red cat", 5, 3))
    run(drawing, *(DrawJob(f"a {word}", seed=1) for word in ("cat", "dog", "car")))
    (again,) = run(drawing, DrawJob("a red cat", seed=3))
    assert len(calls) == 4, "the prompt is remembered"
    np.testing.assert_array_equal(pictures(again), pictures(events)[:1])
    run(drawing, *(DrawJob(f"{word} it", seed=1) for word in ("left", "right", "green", "yes")))
    run(drawing, DrawJob("a red cat", seed=3))
    assert len(calls) == 9, "but not for ever"


def test_blocks_are_short_where_steps_are_slow(monkeypatch, janus, drawing):
    want = janus.generate_arrays("a dog", 1, 9)
    blocks = count_calls(monkeypatch, drawing._engine, "block")
    monkeypatch.setattr(drawing._pool, "_seconds", {})
    for turn, least, most in ((1e-9, 9, 16), (1e9, 1, 3)):
        monkeypatch.setattr(pool, "TURN", turn)
        before = len(blocks)
        (events,) = run(drawing, DrawJob("a dog", seed=9))
        np.testing.assert_array_equal(pictures(events), want)
        assert least <= len(blocks) - before <= most


def test_a_block_ends_where_a_picture_is_to_be_shown(drawing):
    first, second = run(drawing, DrawJob("a cat", previews=3), DrawJob("a dog", previews=7))
    shown = [[e.done for e in events if isinstance(e, Preview)] for events in (first, second)]
    assert shown == [[4, 8, 12], [2, 4, 6, 8, 10, 12, 14]]
    (all_of_them,) = run(drawing, DrawJob("a cat", previews=1000))
    assert [e.done for e in all_of_them if isinstance(e, Preview)] == list(range(1, 16))


@pytest.mark.parametrize("step", ["prefill", "insert", "block"])
def test_after_a_fault_the_next_job_is_drawn(monkeypatch, janus, drawing, step, caplog):
    want = janus.generate_arrays("a car", 1, 5)
    run(drawing, DrawJob("a car", seed=5))

    def fail(*args, **static):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(drawing._engine, step, fail)
        (events,) = run(drawing, DrawJob("a red car", seed=5))
        assert events[-1].kind == "error" and "out of memory" in events[-1].message
        assert drawing.intact
    (events,) = run(drawing, DrawJob("a car", seed=5))
    np.testing.assert_array_equal(pictures(events), want)


def test_after_a_cancelled_job_its_place_is_used_again(janus, drawing):
    cancelled, scheduler = [], Scheduler([drawing])
    ticket = scheduler.add(DrawJob("a dog", n=2), cancelled.append)
    scheduler.tick()
    ticket.cancel()
    scheduler.tick()
    assert cancelled[-1].kind == "cancelled"
    (events,) = run(drawing, DrawJob("a car", n=2, seed=5))
    np.testing.assert_array_equal(pictures(events), janus.generate_arrays("a car", 2, 5))


def test_prompts_have_few_lengths():
    assert prompt_lengths(4096) == [32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert prompt_lengths(1000) == [32, 64, 128, 256, 512, 768, 1008]
    assert prompt_lengths(10) == [16]


def test_conversations_of_any_length_and_with_any_pictures(janus):
    chatting = Chatting(janus, [2], 300, 8)
    seen = [np.asarray(picture(number)) for number in range(4)]
    questions = (
        user("what is it ?", *seen[:1]),
        user("a red cat on the left of it " * 20),
        user("what ?", *seen),
        user("is it a dog ? " * 10, *seen[:2]),
    )
    engine = WorkerThread([chatting])
    answered = ask(engine, *(ChatJob((question,), max_tokens=12) for question in questions))
    for question, events in zip(questions, answered, strict=True):
        talk = janus.conversation()
        want = "".join(talk.ask(question.text, list(question.pictures), max_new_tokens=12))
        assert text(events) == want
    engine.close()


def test_too_little_memory_is_said_at_the_start():
    janus = make_janus(LONGER, memory_limit=10_000)
    with pytest.raises(UserError, match="not enough memory for even one picture"):
        Drawing(janus, [1], 30)
    with pytest.raises(UserError, match="not enough memory for even one answer"):
        Chatting(janus, [1], 300, 1)
    row = Drawing(make_janus(LONGER), [1], 30)._engine.pool_bytes(1)
    few = make_janus(LONGER, memory_limit=10_000_000 + 4 * row)
    assert Drawing(few, [1, 2, 4, 8, 16, 32], 30).places >= 4
