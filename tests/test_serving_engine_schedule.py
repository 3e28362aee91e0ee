"""The scheduling of the server on workers without a model: batches, turns, cancelled and late jobs, errors."""

import random
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest

from janus_jax.errors import UserError
from janus_jax.serving.engine import WorkerThread, scheduling
from janus_jax.serving.engine.scheduling import Prepared, RowDone, Scheduler
from janus_jax.serving.jobs import (
    ChatJob,
    Delta,
    DrawJob,
    Failed,
    Finished,
    Message,
    Picture,
    QueueFull,
)

WAIT = 20  # seconds after which a test fails rather than hangs


@dataclass
class Clerk:
    """A worker: a drawing takes as many blocks as its seed, an answer as many as its max_tokens.

    Attributes:
      log: (kind, prompts of the rows) of every block, in order; may be shared.
      stopped: places that were freed.
      before_block, before_start: are called at the beginning of each block, and with each prompt.
      lost: forgotten rows.
      cost: is called with each block.
    """

    kind: str = "draw"
    places: int = 4
    log: list = field(default_factory=list)
    stopped: list = field(default_factory=list)
    before_block: object = lambda names: None
    before_start: object = lambda name: None
    lost: int = 0
    intact: bool = True
    cost: object = lambda: None
    rows: dict = field(default_factory=dict)

    def takes(self, job):
        return isinstance(job, DrawJob) == (self.kind == "draw")

    def prepare(self, job):
        if self.kind == "chat":
            return Prepared(1, 3, (job.messages[0].text, job.max_tokens))
        if not job.prompt:
            raise UserError("the prompt is empty")
        return Prepared(job.n, 3, (job.prompt, job.seed))

    def start(self, place, row):
        assert place not in self.rows and 0 <= place < self.places
        self.before_start(row.work[0])
        self.rows[place] = [row, 0]

    def step(self):
        names = [row.work[0] for row, _ in self.rows.values()]
        assert names
        self.before_block(names)
        self.cost()
        self.log.append((self.kind, names))
        said = []
        for place, state in self.rows.items():
            row, block = state
            state[1] += 1
            said.append((place, Delta(f"{row.work[0]}{block}")))
            if state[1] == row.work[1]:
                said += [(place, Picture(row.index, None)), (place, RowDone("stop", state[1]))]
        return said

    def stop(self, place):
        self.stopped.append(self.rows.pop(place)[0].work[0])

    def reset(self):
        self.lost += len(self.rows)
        self.rows.clear()
        self.intact = True


def draw(prompt, blocks=2, n=1):
    return DrawJob(prompt, n=n, seed=blocks)


def chat(text, blocks=2):
    return ChatJob((Message("user", text),), max_tokens=blocks)


class Client:
    """Receives the events of one job, which `ended` waits for."""

    def __init__(self):
        self.events, self._ended = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self._ended.set()

    @property
    def last(self):
        return self.events[-1] if self.events else None

    def ended(self):
        assert self._ended.wait(WAIT), "the job is stuck"
        ends = [event for event in self.events if isinstance(event, Finished | Failed)]
        assert ends == [self.events[-1]], "one last event, and nothing after it"
        return self.last


def add(scheduler, *jobs, **options):
    """(ticket, client) of each job."""
    clients = [Client() for _ in jobs]
    return [(scheduler.add(job, c, **options), c) for job, c in zip(jobs, clients, strict=True)]


def run(scheduler):
    for _ in range(1000):
        if scheduler.idle and not scheduler.running:
            return
        scheduler.tick()
    raise AssertionError("jobs are stuck")


def test_jobs_are_computed_together_and_join_and_leave_at_any_block():
    clerk = Clerk(places=3)
    scheduler = Scheduler([clerk])
    jobs = add(scheduler, draw("a", 4), draw("b", 1))
    scheduler.tick()
    jobs += add(scheduler, draw("c", 2), draw("d", 1), draw("e", 1))
    run(scheduler)
    names = [names for _, names in clerk.log]
    assert [sorted(n) for n in names] == [
        ["a", "b"],
        ["a", "c", "d"],
        ["a", "c", "e"],
        ["a"],
    ]
    assert [client.last for _, client in jobs] == [
        Finished("stop", 3, made) for made in (4, 1, 2, 1, 1)
    ]
    assert sorted(clerk.stopped) == list("abcde")


def test_a_single_picture_does_not_wait_for_all_of_a_large_job():
    clerk = Clerk()
    scheduler = Scheduler([clerk])
    (_, many), *_ = add(scheduler, draw("many", 1, n=10), draw("one", 1), draw("other", 1))
    run(scheduler)
    first, *rest = [names for _, names in clerk.log]
    assert first == ["many", "one", "other", "many"]
    assert Counter(name for names in rest for name in names) == {"many": 8}
    pictures = [event.index for event in many.events if isinstance(event, Picture)]
    assert sorted(pictures) == list(range(10))
    assert many.last == Finished("stop", 3, 10)


def test_drawings_and_answers_take_turns():
    log = []
    scheduler = Scheduler([Clerk(log=log), Clerk("chat", log=log)], clock=lambda: 0.0)
    add(scheduler, draw("picture", 5), chat("long", 5))
    scheduler.tick()
    add(scheduler, *(chat(f"late{i}", 1) for i in range(2)))
    run(scheduler)
    kinds = [kind for kind, _ in log]
    assert kinds == ["draw", "chat"] * 5
    assert log[1][1] == ["long", "late0", "late1"], "they do not wait for the long answer"


def test_drawings_and_answers_get_equal_time():
    log, now = [], [0.0]

    def takes(seconds):
        def cost():
            now[0] += seconds

        return cost

    clerks = [Clerk(log=log, cost=takes(4)), Clerk("chat", log=log, cost=takes(1))]
    scheduler = Scheduler(clerks, clock=lambda: now[0])
    add(scheduler, draw("alone", 3))
    run(scheduler)  # which gives those that come later no right to as much
    add(scheduler, chat("long", 40), draw("picture", 10))
    run(scheduler)
    kinds = [kind for kind, _ in log[3:]]
    assert kinds.count("draw") == 10 and kinds.count("chat") == 40
    for end in range(5, 50, 5):
        assert abs(kinds[:end].count("chat") - 4 * kinds[:end].count("draw")) <= 5


def test_prompts_do_not_keep_those_that_are_in_the_middle_waiting(monkeypatch):
    monkeypatch.setattr(scheduling, "STARTING", 0.0)
    clerk = Clerk(places=6, before_start=lambda name: time.sleep(0.001))
    scheduler = Scheduler([clerk])
    add(scheduler, *(draw(name, 3) for name in "abc"))
    run(scheduler)
    assert [len(names) for _, names in clerk.log] == [1, 2, 3, 2, 1]


def test_a_cancelled_job_hears_nothing_more_and_others_go_on():
    clerk = Clerk()
    scheduler = Scheduler([clerk])
    (gone, silent), (_, other) = add(scheduler, draw("gone", 9), draw("other", 3))
    scheduler.tick()
    gone.cancel()
    scheduler.tick()
    assert silent.events == [Delta("gone0"), Failed("cancelled", "the request was cancelled")]
    run(scheduler)
    assert other.last == Finished("stop", 3, 3)
    assert len(clerk.log) == 3, "the blocks that only it needed are not computed"
    gone.cancel()
    scheduler.tick()
    assert len(silent.events) == 2


def test_a_cancelled_job_frees_its_place_within_a_block():
    clerk = Clerk(places=1)
    scheduler = Scheduler([clerk])
    (gone, _), (waits, never), _ = add(scheduler, draw("gone", 9), draw("waits"), draw("next", 1))
    scheduler.tick()
    gone.cancel()
    waits.cancel()
    scheduler.tick()
    assert [names for _, names in clerk.log] == [["gone"], ["next"]]
    assert never.events == [Failed("cancelled", "the request was cancelled")]
    assert scheduler.stats()["draw"]["cancelled"] == 2


def test_a_deadline_ends_a_job_that_runs_and_one_that_waits():
    scheduler = Scheduler([Clerk()])
    past, future = time.monotonic() - 1, time.monotonic() + 1000
    ((_, late),) = add(scheduler, draw("late"), deadline=past)
    ((running, client), (_, fine)) = add(
        scheduler, draw("running", 5), draw("fine"), deadline=future
    )
    scheduler.tick()
    assert late.events == [Failed("deadline", "the request took longer than it may")]
    running.deadline = past
    run(scheduler)
    assert client.last.kind == "deadline" and len(client.events) == 2
    assert fine.last == Finished("stop", 3, 2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes"), "out of memory"),
        (RuntimeError("secret\npath"), r"failed at this request \(RuntimeError\)$"),
        (UserError("not even one\x1b fits"), r"^not even one\\x1b fits$"),
    ],
)
def test_an_error_of_a_block_ends_the_jobs_that_were_in_it(error, message, caplog):
    def fail(names):
        if "bad" in names and len(clerk.log) == 1:
            raise error

    clerk = Clerk(before_block=fail, places=2)
    scheduler = Scheduler([clerk, Clerk("chat")])
    (_, bad), (_, beside), (_, after), (_, other) = add(
        scheduler, draw("bad", n=3), draw("beside"), draw("after"), chat("other", 3)
    )
    run(scheduler)
    for client in (bad, beside):
        assert client.ended().kind == "error"
        assert "\n" not in client.last.message
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(client.last.message)
    assert after.ended() == Finished("stop", 3, 2)
    assert other.ended() == Finished("stop", 3, 3)
    assert clerk.lost == 2
    assert "bad" not in [name for _, names in clerk.log[1:] for name in names]
    assert scheduler.stats()["draw"]["error"] == 2
    assert "Traceback" in caplog.text, "the operator sees where"


def test_a_device_that_always_fails_ends_the_engine(caplog):
    def fail(names):
        if names != ["fine"]:
            raise RuntimeError("no device")

    one = engine(Clerk(places=1, before_block=fail))
    for round in range(2):  # what goes well in between begins a new count
        clients = [Client() for _ in range(scheduling.HOPELESS - 1 + round)]
        for client in clients:
            one.submit(draw("bad"), client)
        assert [client.ended().message for client in clients] == [
            "the server has failed at this request (RuntimeError)"
        ] * len(clients)
        if not round:
            client = Client()
            one.submit(draw("fine"), client)
            assert client.ended() == Finished("stop", 3, 2)
            assert not one.failed
    one.close()
    assert one.failed and not one.ready


@pytest.mark.parametrize("intact", [True, False])
def test_an_error_of_a_prompt_ends_its_job_alone_unless_the_others_are_lost(intact, caplog):
    def fail(name):
        if name == "bad" and len(clerk.rows) == 3:
            clerk.intact = intact
            raise RuntimeError("no")

    clerk = Clerk(before_start=fail)
    scheduler = Scheduler([clerk])
    (_, fine), (_, bad), (_, after) = add(scheduler, draw("fine"), draw("bad", n=2), draw("after"))
    run(scheduler)
    assert bad.ended().kind == "error"
    for client in (fine, after):
        last = client.ended()
        assert last == Finished("stop", 3, 2) if intact else last.kind == "error"
    assert scheduler.stats()["draw"]["rows"] == 3, "of which one was of the bad job"
    assert not clerk.rows


def test_a_receiver_that_raises_harms_nobody_else(caplog):
    def broken(event):
        raise OSError("the connection is gone")

    scheduler = Scheduler([Clerk()])
    scheduler.add(draw("broken", 9), broken)
    ((_, other),) = add(scheduler, draw("other", 3))
    run(scheduler)
    assert other.ended() == Finished("stop", 3, 3)


def test_the_queue_is_bounded_by_rows():
    scheduler = Scheduler([Clerk(), Clerk("chat")], max_waiting=5)
    add(scheduler, draw("first", n=4))
    with pytest.raises(QueueFull) as full:
        scheduler.add(draw("second", n=2), print)
    assert full.value.after >= 1
    add(scheduler, chat("another kind has its own queue"), draw("third"))
    with pytest.raises(UserError, match="asks for 6 at once, the limit of this server is 5"):
        scheduler.add(draw("never", n=6), print)
    scheduler.tick()  # four rows have places now
    add(scheduler, draw("second", n=2))
    with pytest.raises(UserError, match="the prompt is empty"):
        scheduler.add(draw(""), print)
    run(scheduler)
    assert scheduler.stats()["draw"]["finished"] == 3


def test_statistics_count_every_job_once():
    scheduler = Scheduler([Clerk(), Clerk("chat")])
    add(scheduler, draw("a", n=5), draw("b"), chat("c"))
    scheduler.tick()
    now = scheduler.stats()
    assert (now["draw"]["running"], now["draw"]["waiting"], now["chat"]["running"]) == (2, 0, 1)
    add(scheduler, draw("late"))
    assert scheduler.stats()["draw"]["waiting"] == 1
    run(scheduler)
    now = scheduler.stats()["draw"]
    assert (now["running"], now["waiting"], now["finished"], now["rows"]) == (0, 0, 3, 7)
    assert (now["made"], now["prompt_tokens"]) == (14, 9)
    assert (now["blocks"], now["block_rows"]) == (4, 14)


def engine(*clerks, **options):
    return WorkerThread(clerks or [Clerk(), Clerk("chat")], **options)


def test_200_mixed_jobs_of_which_a_fifth_is_cancelled_all_end():
    one, rng = engine(max_waiting=1000), random.Random(0)
    clients, cancelled = [], defaultdict(bool)

    def submit(part):
        for number in part:
            blocks = rng.randint(1, 5)
            job = chat("x", blocks) if number % 2 else draw("x", blocks, n=1 + number % 3)
            client = clients[number]
            ticket = one.submit(job, client)
            if number % 5 == 0:
                time.sleep(rng.random() / 1000)
                cancelled[number] = True
                ticket.cancel()

    clients += [Client() for _ in range(200)]
    threads = [threading.Thread(target=submit, args=[range(i, 200, 4)]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for number, client in enumerate(clients):
        last = client.ended()
        assert isinstance(last, Finished) or (cancelled[number] and last.kind == "cancelled")
    one.close()
    kinds = one.stats().values()
    assert sum(kind["finished"] + kind["cancelled"] for kind in kinds) == 200
    assert not any(kind["waiting"] + kind["running"] + kind["error"] for kind in kinds)


@pytest.mark.parametrize("drain", [True, False])
def test_close(drain):
    begun, go_on = threading.Event(), threading.Event()

    def hold(names):
        begun.set()
        assert go_on.wait(WAIT)

    one = engine(Clerk(places=1, before_block=hold))
    running, waiting = Client(), Client()
    one.submit(draw("running"), running)
    one.submit(draw("waiting"), waiting)
    assert begun.wait(WAIT)
    closing = threading.Thread(target=one.close, args=[drain])
    closing.start()
    while one.ready:
        time.sleep(0.001)
    with pytest.raises(QueueFull):
        one.submit(draw("late"), print)
    assert closing.is_alive(), "it waits for what is running"
    time.sleep(0.05)  # for `close` to have cancelled
    go_on.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    for client in (running, waiting):
        last = client.ended()
        assert isinstance(last, Finished) if drain else last.kind == "cancelled"
    one.close()
    assert not one.failed


def test_a_worker_that_ends_the_thread_leaves_no_job_behind(caplog):
    def leave(names):
        raise SystemExit

    one = engine(Clerk(before_block=leave))
    clients = [Client(), Client()]
    for client in clients:
        try:
            one.submit(draw("x"), client)
        except QueueFull:
            client(Failed("error", "refused"))
    assert all(client.ended().kind == "error" for client in clients)
    assert one.failed and not one.ready
