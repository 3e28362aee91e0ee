"""Random schedules of jobs on a small model: whoever is not cancelled gets exactly what it gets alone."""

import functools

import numpy as np
import pytest
from dummies_model import GUIDED, LONGER, make_janus, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_engine_client import pictures, text, user
from test_serving_engine_any_order import assert_empty

from janus_jax.config import VQConfig
from janus_jax.serving.engine.chatting import Chatting
from janus_jax.serving.engine.drawing import Drawing
from janus_jax.serving.engine.scheduling import Scheduler
from janus_jax.serving.jobs import ChatJob, DrawJob, Failed, Message

pytestmark = pytest.mark.slow
SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)
CONTEXT, LONGEST = 130, 30
SEEN = [np.asarray(picture(number)) for number in range(2)]
HOT = dict(temperature=0.9, seed=5)

# Four settings of drawing, as each is a program of its own where a picture is drawn alone.
DRAWINGS = [
    DrawJob(prompt, n, seed, **own, previews=previews)
    for n, seed, previews, own in (
        (1, 0, 0, {}),
        (3, 2**32 - 1, 3, {}),
        (5, 7, 0, dict(cfg_weight=1)),
        (1, 3, 15, dict(temperature=0)),
        (2, 4, 1, dict(top_k=3, temperature=2.0)),
        (1, 5, 0, dict(cfg_weight=50.0, top_p=0.3)),
    )
    for prompt in ("a", "a red cat on the left", "a red cat on the left of a green car on the dog")
]
CHATS = [
    ChatJob((user(question, *shown),), max_tokens=tokens, stop=stop, **how)
    for tokens, stop, how in (
        (1, (), {}),
        (16, (), {}),
        (17, ("car", "e d"), {}),
        (10**6, (), {}),
        (40, (), HOT),
        (40, (), HOT | dict(top_p=0.6)),
    )
    for question, *shown in (
        ["?"],
        ["what is it ?"],
        ["is it a dog ? " * 9],
        ["what ?", SEEN[0]],
        ["what ?", SEEN[1]],
    )
]
TALK = ChatJob((user("what ?", SEEN[1]), Message("assistant", "a cat"), user("left ?")), 30, 0.9)
JOBS = [*DRAWINGS, *CHATS, TALK]

MODELS = {
    "float32": (LONGER, {}),
    "int8-cache": (LONGER, {"int8": ["cache"]}),
    "positions-end": (LONGER.replace(decoder=LONGER.decoder.replace(max_position=56)), {}),
    "one-key-head": (
        LONGER.replace(decoder=LONGER.decoder.replace(kv_heads=1, layers=3), scan_layers=True),
        {},
    ),
    "64-codes": (
        LONGER.replace(
            vq=VQConfig(
                image_size=32,
                codebook_size=300,
                codebook_dim=4,
                z_channels=8,
                ch=8,
                ch_mult=(1, 2),
                num_res_blocks=1,
                norm_groups=4,
                patch_size=4,
            )
        ),
        {},
    ),
}


class Served:
    """A model, its workers, and what it draws and answers alone."""

    def __init__(self, name, sizes):
        config, options = MODELS[name]
        self.janus = make_janus(config, fields=GUIDED, **options)
        self.workers = [
            Drawing(self.janus, sizes, LONGEST),
            Chatting(self.janus, sizes, CONTEXT, 1),
        ]
        self.alone = functools.cache(self._alone)

    def _alone(self, number):
        job = JOBS[number]
        if isinstance(job, DrawJob):
            how = (job.cfg_weight, job.temperature, job.top_k, job.top_p)
            names = ("cfg_weight", "temperature", "top_k", "top_p")
            how = dict(zip(names, how, strict=True))
            drawn = self.janus.sample(job.prompt, job.n, seed=job.seed, **how)
            # One by one: the pixels of several at once may be rounded differently.
            return np.stack([self.janus.decode_codes_arrays(codes) for codes in drawn.codes])
        *earlier, last = job.messages
        prepared = self.workers[1].prepare(job)
        limit = prepared.work.limit
        if job.stop:
            shown = list(last.pictures) or None
            return self.janus.answer(shown, last.text, limit, stop=job.stop)
        talk = self.janus.conversation(job.temperature, job.top_p, job.seed)
        for asked, answer in zip(earlier[::2], earlier[1::2], strict=True):
            talk.add(asked.text, answer.text, list(asked.pictures))
        return "".join(talk.ask(last.text, list(last.pictures), limit))

    def fits(self, number):
        try:
            worker = self.workers[isinstance(JOBS[number], ChatJob)]
            worker.prepare(JOBS[number])
        except ValueError:
            return False
        return True

    def check(self, number, events):
        job, got = JOBS[number], pictures if isinstance(JOBS[number], DrawJob) else text
        np.testing.assert_array_equal(got(events), self.alone(number), err_msg=str(job)[:300])


jobs = st.tuples(
    st.integers(0, len(JOBS) - 1),
    st.integers(0, 3),  # ticks before it comes
    st.one_of(st.none(), st.none(), st.integers(0, 6)),  # ticks, or events, until it is cancelled
    st.booleans(),  # whether these are events
)


@pytest.mark.parametrize(("name", "sizes"), [("float32", [3]), *((one, [1, 5]) for one in MODELS)])
def test_in_any_schedule_everybody_gets_what_it_gets_alone(name, sizes):
    served = Served(name, sizes)
    possible = {number for number in range(len(JOBS)) if served.fits(number)}
    assert len(possible) > len(JOBS) / 2

    @SETTINGS
    @given(st.lists(jobs, min_size=1, max_size=10))
    def play(schedule):
        play_schedule(served, [one for one in schedule if one[0] in possible])

    play()


def play_schedule(served, schedule):
    scheduler, found, ticks = Scheduler(served.workers), [], 0
    to_cancel = []

    def tick():
        nonlocal ticks
        ticks += 1
        assert ticks < 3000, "stuck"
        for due, ticket in to_cancel:
            if due == ticks:
                ticket.cancel()
        scheduler.tick()

    def add(number, cancel_after, by_events):
        events, tickets = [], []

        def on_event(event):
            events.append(event)
            if by_events and len(events) == cancel_after:
                tickets[0].cancel()

        tickets.append(scheduler.add(JOBS[number], on_event))
        if cancel_after is not None and not by_events:
            to_cancel.append((ticks + cancel_after, tickets[0]))
        found.append((number, events, cancel_after))

    for number, wait, cancel_after, by_events in schedule:
        for _ in range(wait):
            tick()
        add(number, cancel_after, by_events)
    while not scheduler.idle or scheduler.running:
        tick()
    for number, events, cancel_after in found:
        cancelled = isinstance(events[-1], Failed) and events[-1].kind == "cancelled"
        if cancelled:
            assert cancel_after is not None
        else:
            served.check(number, events)
    assert_empty(scheduler, [])
    for worker in served.workers:
        assert not worker._pool._taken
        assert not getattr(worker, "_drawings", None) and not getattr(worker, "_answers", None)
    assert not served.workers[0]._to_show
