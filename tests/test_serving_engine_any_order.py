"""The scheduling of the server in any order of events: every job ends once, nothing is left, nobody starves."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_serving_engine_schedule import WAIT, Clerk, Client, add, chat, draw, run

from janus_jax.serving.engine import WorkerThread
from janus_jax.serving.engine.scheduling import Scheduler
from janus_jax.serving.jobs import Delta, Failed, Finished, Picture, QueueFull

SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)
PLACES, MOST = 3, 12
steps = st.one_of(
    st.tuples(st.just("draw"), st.integers(1, 5), st.integers(1, 3)),
    st.tuples(st.just("chat"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["cancel", "late", "cancel at its event"]), st.integers(0, 99)),
    st.tuples(st.sampled_from(["fail at a start", "lose all at a start", "fail at a block"])),
    st.tuples(st.just("tick")),
    st.tuples(st.just("tick")),
)


class Story:
    """Does what hypothesis says, and knows which jobs may have been disturbed."""

    def __init__(self):
        self.fault = None
        hooks = dict(before_block=self._in_block, before_start=self._at_start)
        self.clerks = [Clerk(places=PLACES, **hooks), Clerk("chat", places=PLACES, **hooks)]
        self.scheduler = Scheduler(self.clerks, MOST)
        self.jobs, self.disturbed, self.went_on = [], set(), False

    def do(self, name, *numbers):
        if name in ("draw", "chat"):
            self._add(name, *numbers)
        elif name == "tick":
            self.scheduler.tick()
        elif len(numbers) == 0:
            self.fault = name
        elif self.jobs:
            number = numbers[0] % len(self.jobs)
            ticket, client, *_ = self.jobs[number]
            self.disturbed.add(number)
            if name == "late":
                ticket.deadline = time.monotonic() - 1
            elif name == "cancel":
                ticket.cancel()
            else:
                client.on_next = ticket.cancel

    def _add(self, kind, first, second=None):
        name, n, blocks = str(len(self.jobs)), first if second else 1, second or first
        waiting = self.scheduler.waiting_rows(kind)
        client = Impatient()
        job = draw(name, blocks, n) if kind == "draw" else chat(name, blocks)
        try:
            self.jobs.append((self.scheduler.add(job, client), client, n, blocks))
        except QueueFull:
            assert waiting + n > MOST

    def _at_start(self, name):
        fault, self.fault = self.fault, self.fault if self.fault == "fail at a block" else None
        if fault in ("fail at a start", "lose all at a start"):
            self.disturbed.add(int(name))
            if fault == "lose all at a start":
                ticket = self.jobs[int(name)][0]
                clerk = next(clerk for clerk in self.clerks if clerk.kind == ticket.kind)
                clerk.intact = False
                self.disturbed |= {int(row.work[0]) for row, _ in clerk.rows.values()}
            raise RuntimeError("at the start")

    def _in_block(self, names):
        self.went_on |= not all(clerk.intact for clerk in self.clerks)
        if self.fault == "fail at a block":
            self.fault = None
            self.disturbed |= set(map(int, names))
            raise RuntimeError("in a block")


class Impatient(Client):
    on_next = None

    def __call__(self, event):
        super().__call__(event)
        if self.on_next:
            self.on_next()


@SETTINGS
@given(st.lists(steps, max_size=40))
def test_in_any_order_every_job_ends_once_and_nothing_is_left(story):
    player = Story()
    for step in story:
        player.do(*step)
    run(player.scheduler)
    for number, (_, client, n, blocks) in enumerate(player.jobs):
        last = client.ended()
        if number in player.disturbed:
            assert isinstance(last, Finished) or last.kind in ("cancelled", "deadline", "error")
            continue
        assert last == Finished("stop", 3, n * blocks)
        said = sorted(event.text for event in client.events if isinstance(event, Delta))
        assert said == sorted(f"{number}{block}" for block in range(blocks) for _ in range(n))
        shown = sorted(event.index for event in client.events if isinstance(event, Picture))
        assert shown == list(range(n))
    assert not player.went_on, "rows that were lost must not be stepped"
    assert_empty(player.scheduler, player.clerks)
    for kind, stats in player.scheduler.stats().items():
        ended = sum(stats[how] for how in ("finished", "cancelled", "deadline", "error"))
        assert ended == sum(ticket.kind == kind for ticket, *_ in player.jobs)


def assert_empty(scheduler, clerks):
    assert scheduler.idle and not scheduler.running
    assert not scheduler._begun and not scheduler._open
    assert not any(scheduler._waiting.values())
    assert not any(clerk.rows for clerk in clerks)


def test_cancelled_jobs_do_not_pile_up_while_all_places_are_taken():
    scheduler = Scheduler([Clerk(places=1)], max_waiting=4)
    add(scheduler, draw("long", 10**6))
    scheduler.tick()
    for _ in range(50):
        ((gone, _),) = add(scheduler, draw("gone"))
        gone.cancel()
        scheduler.tick()
        assert not scheduler._waiting["draw"], "what it holds, such as pictures, is released"


def test_nor_while_a_block_takes_long():
    scheduler = Scheduler([Clerk(places=1)], max_waiting=4)
    for _ in range(4):
        ((gone, _),) = add(scheduler, draw("gone"))
        gone.cancel()
    with pytest.raises(QueueFull):
        scheduler.add(draw("fifth"), print)
    scheduler.tick()
    add(scheduler, draw("now there is room", n=4))


def test_a_job_of_many_pictures_ends_under_an_endless_stream_of_single_ones():
    scheduler = Scheduler([Clerk(places=2)], max_waiting=16)
    ((_, many),) = add(scheduler, draw("many", 2, n=10))
    singles = 0
    while many.last is None or not isinstance(many.last, Finished):
        while scheduler.waiting_rows("draw") < 15:
            add(scheduler, draw(f"single{singles}", 1))
            singles += 1
        scheduler.tick()
        assert singles < 200, "it starves"
    assert singles > 20


@pytest.mark.parametrize(("stream", "one"), [(draw, chat), (chat, draw)])
def test_neither_kind_starves_under_an_endless_stream_of_the_other(stream, one):
    log = []
    scheduler = Scheduler(
        [Clerk(places=2, log=log), Clerk("chat", places=2, log=log)], 8, clock=lambda: 0.0
    )
    ((_, client),) = add(scheduler, one("one", 20))
    waiting = "draw" if stream is draw else "chat"
    while client.last is None or not isinstance(client.last, Finished):
        while scheduler.waiting_rows(waiting) < 8:
            add(scheduler, stream("stream", 3))
        scheduler.tick()
        assert len(log) < 50, "it starves"
    assert 39 <= len(log) <= 41, "they take turns"


def test_a_job_that_comes_while_the_engine_is_told_to_cancel_all_is_cancelled(monkeypatch):
    begun, go_on, told = threading.Event(), threading.Event(), threading.Event()

    def hold(names):
        begun.set()
        assert go_on.wait(WAIT)
        time.sleep(0.001)

    engine = WorkerThread([Clerk(before_block=hold)])
    closer = threading.Thread(target=engine.close, args=[False])
    add_job, cancel_all = engine._scheduler.add, engine._scheduler.cancel_all

    def add_late(*args):
        closer.start()
        assert told.wait(WAIT)
        return add_job(*args)

    def cancel_those_that_are_there():
        cancel_all()
        told.set()

    early, late = Client(), Client()
    engine.submit(draw("early", 10**6), early)
    assert begun.wait(WAIT)
    monkeypatch.setattr(engine._scheduler, "cancel_all", cancel_those_that_are_there)
    monkeypatch.setattr(engine._scheduler, "add", add_late)
    engine.submit(draw("late", 10**6), late)
    go_on.set()
    assert early.ended().kind == late.ended().kind == "cancelled"
    closer.join(WAIT)
    assert not closer.is_alive()


def test_jobs_of_a_receiver_are_taken_and_cancelled_within_its_events():
    scheduler, inner = Scheduler([Clerk(places=1)]), Client()

    def again(event):
        if isinstance(event, Finished):
            scheduler.add(draw("inner", 1), inner)
            scheduler.add(draw("gone"), lambda event: None).cancel()

    scheduler.add(draw("outer", 1), again)
    run(scheduler)
    assert inner.ended() == Finished("stop", 3, 1)
    assert scheduler.stats()["draw"]["cancelled"] == 1


def test_a_receiver_may_close_the_engine():
    engine, closed = WorkerThread([Clerk()]), threading.Event()

    def close(event):
        if isinstance(event, Finished | Failed):
            closed.set()
        else:
            engine.close(drain=False)

    engine.submit(draw("x", 5), close)
    assert closed.wait(WAIT)
    engine.close()
