"""The scheduling of the server on workers without a model: batches, turns, cancelled and late jobs, errors."""

import random
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest

from janus_jax.errors import UserError
from janus_jax.serving.engine import WorkerThread
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
from janus_jax.serving.scheduling import Prepared, RowDone, Scheduler

WAIT = 20  # seconds after which a test fails rather than hangs


@dataclass
class Clerk:
    """A worker: a drawing takes as many blocks as its seed, an answer as many as its max_tokens.

    Attributes:
      log: (kind, prompts of the batch) of every block, in order; may be shared.
      closed: how many batches were ended early.
      before_block: is called at the beginning of each block.
    """

    kind: str = "draw"
    max_rows: int = 4
    max_batches: int = 1
    log: list = field(default_factory=list)
    closed: int = 0
    before_block: object = lambda rows: None

    def takes(self, job):
        return isinstance(job, DrawJob) == (self.kind == "draw")

    def prepare(self, job):
        if self.kind == "chat":
            return Prepared(1, "chat", 3, (job.messages[0].text, job.max_tokens))
        if not job.prompt:
            raise UserError("the prompt is empty")
        return Prepared(job.n, job.cfg_weight, 3, (job.prompt, job.seed))

    def run(self, rows):
        names = [row.work[0] for row in rows]
        finished = False
        try:
            last = max(row.work[1] for row in rows) - 1
            for block in range(last + 1):
                self.before_block(names)
                self.log.append((self.kind, names))
                said = []
                for number, row in enumerate(rows):
                    if block < row.work[1]:
                        said.append((number, Delta(f"{row.work[0]}{block}")))
                    if block == row.work[1] - 1:
                        said += [
                            (number, Picture(row.index, None)),
                            (number, RowDone("stop", block + 1)),
                        ]
                finished = block == last
                yield said
        finally:
            self.closed += not finished


def draw(prompt, blocks=2, n=1, group=None):
    return DrawJob(prompt, n=n, seed=blocks, cfg_weight=group)


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


def test_jobs_that_fit_together_are_one_batch_and_others_are_not():
    clerk = Clerk()
    scheduler = Scheduler([clerk])
    jobs = add(scheduler, draw("a"), draw("b", group=2), draw("c", 1), draw("d", group=2))
    run(scheduler)
    a, b = ("draw", ["a", "c"]), ("draw", ["b", "d"])
    assert clerk.log == [a, a, b, b]
    assert all(
        client.last == Finished("stop", 3, made)
        for (_, client), made in zip(jobs, (2, 2, 1, 2), strict=True)
    )


def test_a_single_picture_does_not_wait_for_all_of_a_large_job():
    clerk = Clerk()
    scheduler = Scheduler([clerk])
    jobs = draw("many", 1, n=10), draw("one", 1), draw("other", 1, group=2)
    (_, many), *_ = add(scheduler, *jobs)
    run(scheduler)
    first, second, *rest = [names for _, names in clerk.log]
    assert first == ["many", "one", "many", "many"]
    assert second == ["other"], "whose group has not been served comes first"
    assert Counter(name for names in rest for name in names) == {"many": 7}
    pictures = [event.index for event in many.events if isinstance(event, Picture)]
    assert sorted(pictures) == list(range(10))
    assert many.last == Finished("stop", 3, 10)


def test_drawings_and_answers_take_turns():
    log = []
    scheduler = Scheduler([Clerk(log=log), Clerk("chat", max_batches=2, log=log)])
    add(scheduler, draw("picture", 5), chat("long", 5))
    scheduler.tick()
    add(scheduler, *(chat(f"late{i}", 1) for i in range(2)))
    run(scheduler)
    kinds = [kind for kind, _ in log]
    assert all("draw" in kinds[i : i + 3] for i in range(9))
    at = [names for _, names in log].index(["late0", "late1"])
    assert at < 5, "it does not wait for the end of the long answer"


def test_a_cancelled_job_hears_nothing_more_and_its_batch_goes_on():
    clerk = Clerk()
    scheduler = Scheduler([clerk])
    (gone, silent), (_, other) = add(scheduler, draw("gone", 9), draw("other", 3))
    scheduler.tick()
    gone.cancel()
    scheduler.tick()
    assert silent.events == [Delta("gone0"), Failed("cancelled", "the request was cancelled")]
    run(scheduler)
    assert other.last == Finished("stop", 3, 3)
    assert len(clerk.log) == 3 and clerk.closed == 1, (
        "the blocks that only it needed are not computed"
    )
    gone.cancel()
    scheduler.tick()
    assert len(silent.events) == 2


def test_a_cancelled_job_frees_its_place_within_a_block():
    clerk = Clerk()
    scheduler = Scheduler([clerk])
    (gone, _), (waits, never), _ = add(
        scheduler, draw("gone", 9), draw("waits", group=2), draw("next", 1, group=3)
    )
    scheduler.tick()
    gone.cancel()
    waits.cancel()
    scheduler.tick()
    assert [names for _, names in clerk.log] == [["gone"], ["next"]]
    assert clerk.closed == 1
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
def test_an_error_ends_the_jobs_of_its_batch_alone(error, message, caplog):
    def fail(names):
        if "bad" in names and len(clerk.log) == 1:
            raise error

    clerk = Clerk(before_block=fail, max_rows=2)
    scheduler = Scheduler([clerk])
    (_, bad), (_, beside), (_, after) = add(
        scheduler, draw("bad", n=3), draw("beside"), draw("after")
    )
    run(scheduler)
    for client in (bad, beside):
        assert client.ended().kind == "error"
        assert "\n" not in client.last.message
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(client.last.message)
    assert after.ended() == Finished("stop", 3, 2)
    assert "bad" not in [name for _, names in clerk.log[1:] for name in names]
    assert scheduler.stats()["draw"]["error"] == 2
    assert "Traceback" in caplog.text, "the operator sees where"


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
    scheduler.tick()  # four rows are in a batch now
    add(scheduler, draw("second", n=2))
    with pytest.raises(UserError, match="the prompt is empty"):
        scheduler.add(draw(""), print)
    run(scheduler)
    assert scheduler.stats()["draw"]["finished"] == 3


def test_statistics_count_every_job_once():
    scheduler = Scheduler([Clerk(), Clerk("chat")])
    add(scheduler, draw("a", n=5), draw("b", group=2), chat("c"))
    scheduler.tick()
    now = scheduler.stats()
    assert (now["draw"]["running"], now["draw"]["waiting"], now["chat"]["running"]) == (1, 1, 1)
    run(scheduler)
    now = scheduler.stats()["draw"]
    assert (now["running"], now["waiting"], now["finished"], now["rows"]) == (0, 0, 2, 6)
    assert (now["made"], now["prompt_tokens"], now["batches"]) == (12, 6, 3)


def engine(*clerks, **options):
    return WorkerThread(clerks or [Clerk(), Clerk("chat", max_batches=2)], **options)


def test_requests_that_come_together_are_computed_together():
    clerk = Clerk(max_rows=3)
    one = engine(clerk, gather=WAIT)  # ends as soon as a batch is full
    clients = [Client() for _ in range(3)]
    for client in clients:
        one.submit(draw("x"), client)
    assert all(isinstance(client.ended(), Finished) for client in clients)
    assert [len(names) for _, names in clerk.log] == [3, 3]
    one.close()


def test_200_mixed_jobs_of_which_a_fifth_is_cancelled_all_end():
    one, rng = engine(max_waiting=1000, gather=0), random.Random(0)
    clients, cancelled = [], defaultdict(bool)

    def submit(part):
        for number in part:
            blocks = rng.randint(1, 5)
            job = (
                chat("x", blocks)
                if number % 2
                else draw("x", blocks, n=1 + number % 3, group=number % 5)
            )
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

    one = engine(Clerk(before_block=hold), gather=0)
    running, waiting = Client(), Client()
    one.submit(draw("running"), running)
    one.submit(draw("waiting", group=2), waiting)
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


def test_a_worker_that_ends_the_thread_leaves_no_job_behind(caplog):
    def leave(names):
        raise SystemExit

    one = engine(Clerk(before_block=leave), gather=0)
    clients = [Client(), Client()]
    for client in clients:
        try:
            one.submit(draw("x"), client)
        except QueueFull:
            client(Failed("error", "refused"))
    assert all(client.ended().kind == "error" for client in clients)
    assert not one.ready
