"""Which rows of which jobs are computed next: batches of what fits together, a block at a time.

No threads and no model: `Scheduler.tick` does one block. Whatever knows how rows are computed is a `Worker`, one
for drawing and one for answers; each has its own queue, so that neither waits for the other.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from janus_jax.errors import UserError
from janus_jax.serving.jobs import Event, Failed, Finished, Job, QueueFull
from janus_jax.untrusted import printable

log = logging.getLogger(__name__)

OUTCOMES = ("finished", "cancelled", "deadline", "error")


class Prepared(NamedTuple):
    """A job that was checked.

    Attributes:
      rows: how many it has: pictures, or one answer.
      group: rows of equal groups can be in one batch.
      prompt_tokens: positions of the prompt.
      work: what the worker needs of it.
    """

    rows: int
    group: Hashable
    prompt_tokens: int
    work: Any


class RowDone(NamedTuple):
    """A row has nothing more to say: why, and how many tokens or codes were made."""

    reason: str
    made: int


class Ticket:
    """A job that was taken; see `jobs.Ticket`.

    Attributes:
      kind: of the worker.
      prepared: what is to be done.
      deadline: of `time.monotonic()`, or None.
      cancelled: was asked for.
      ended: its last event is out.
      given: rows that are or were in a batch.
    """

    def __init__(
        self,
        kind: str,
        prepared: Prepared,
        on_event: Callable[[Event], None],
        deadline: float | None,
        wake: Callable[[], None],
    ):
        self.kind, self.prepared, self.deadline = kind, prepared, deadline
        self.cancelled, self.ended = False, False
        self.given = 0
        self._on_event, self._wake = on_event, wake
        self._done: list[RowDone] = []

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()

    @property
    def alive(self) -> bool:
        """Whether anybody waits for what it makes."""
        return not (self.ended or self.cancelled)

    def send(self, event: Event) -> None:
        """Hands out an event. A receiver that raises gets nothing more: that is its fault, and only its own."""
        self.ended = isinstance(event, Finished | Failed)
        try:
            self._on_event(event)
        except Exception:
            log.exception("the receiver of a job's events failed")
            self.cancelled = True

    def row_done(self, done: RowDone) -> None:
        """The last row ends the job."""
        self._done.append(done)
        if len(self._done) == self.prepared.rows:
            reason = "length" if any(row.reason == "length" for row in self._done) else "stop"
            made = sum(row.made for row in self._done)
            self.send(Finished(reason, self.prepared.prompt_tokens, made))


@dataclasses.dataclass(frozen=True)
class Row:
    """One picture or answer of a batch.

    Attributes:
      work: of its job.
      index: its number in the job.
      ticket: of the job.
    """

    work: Any
    index: int
    ticket: Ticket

    @property
    def alive(self) -> bool:
        """Whether anybody waits for it: what nobody waits for need not be sent."""
        return self.ticket.alive


# The number of the row in the batch, and what is said of it
Output = tuple[int, Event | RowDone]


class Worker(Protocol):
    """Knows how rows are computed.

    Attributes:
      kind: its name in `stats`.
      max_rows: of a batch.
      max_batches: that are computed by turns, each with a state of its own on the device.
    """

    kind: str
    max_rows: int
    max_batches: int

    def takes(self, job: Job) -> bool:
        """Whether a job is of its kind."""
        ...

    def prepare(self, job: Job) -> Prepared:
        """Checks a job without the device, in any thread. Raises UserError."""
        ...

    def run(self, rows: Sequence[Row]) -> Generator[list[Output], None, None]:
        """Computes rows of one group: a block before each `yield`. Says `RowDone` once of each row; of one that
        is not alive it may say nothing."""
        ...


class _Batch:
    """Rows that are computed together.

    Attributes:
      open: numbers of the rows that have more to say.
    """

    def __init__(self, worker: Worker, rows: list[Row]):
        self.worker, self.rows = worker, rows
        self.blocks = worker.run(rows)
        self.open = set(range(len(rows)))
        self.began = time.monotonic()

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for one of its rows."""
        return any(self.rows[number].alive for number in self.open)


class Scheduler:
    """Jobs in, events out. `add` may be called from any thread, `tick` from one.

    Batches take turns, a block each. A new batch is made of the group of the job that is first in the queue; the
    jobs of that group give one row each in turn, so that a single picture does not wait for a job of many. A job
    with rows left goes to the end of the queue.

    Args:
      workers: one a kind.
      max_waiting: most rows of a kind that wait for a place in a batch.
      wake: is called when there is something new to do.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        max_waiting: int = 256,
        wake: Callable[[], None] = lambda: None,
    ):
        self._workers = {worker.kind: worker for worker in workers}
        self._max_waiting, self._wake = max_waiting, wake
        self._lock = threading.Lock()
        self._waiting: dict[str, collections.deque[Ticket]] = {
            kind: collections.deque() for kind in self._workers
        }
        self._running: collections.deque[_Batch] = collections.deque()
        self._open: set[Ticket] = set()  # taken, and not ended
        self._counts = {kind: collections.Counter() for kind in self._workers}
        self._batch_seconds = {kind: 0.0 for kind in self._workers}

    def add(
        self,
        job: Job,
        on_event: Callable[[Event], None],
        deadline: float | None = None,
    ) -> Ticket:
        """Checks and takes a job. Raises UserError or QueueFull."""
        worker = next((w for w in self._workers.values() if w.takes(job)), None)
        if worker is None:
            raise UserError(f"this server takes no {type(job).__name__}")
        prepared = worker.prepare(job)
        if prepared.rows > self._max_waiting:
            raise UserError(
                f"the request asks for {prepared.rows} at once, the limit of this server is {self._max_waiting}"
            )
        ticket = Ticket(worker.kind, prepared, on_event, deadline, self._wake)
        with self._lock:
            waiting = self.waiting_rows(worker.kind)
            if waiting + prepared.rows > self._max_waiting:
                raise QueueFull(self._seconds_until_free(worker, waiting))
            self._waiting[worker.kind].append(ticket)
            self._open.add(ticket)
        self._wake()
        return ticket

    def waiting_rows(self, kind: str) -> int:
        """Rows that wait for a place in a batch."""
        return sum(t.prepared.rows - t.given for t in self._waiting[kind] if t.alive)

    @property
    def idle(self) -> bool:
        """Whether no job is open."""
        return not self._open

    @property
    def running(self) -> bool:
        """Whether a batch is being computed."""
        return bool(self._running)

    @property
    def full(self) -> bool:
        """Whether as much waits as fits into a batch."""
        with self._lock:
            return any(self.waiting_rows(k) >= w.max_rows for k, w in self._workers.items())

    def tick(self) -> None:
        """Ends what was cancelled or is too late, starts batches, and does the next block of one."""
        self._end_late()
        self._drop_unwanted()
        for worker in self._workers.values():
            self._start(worker)
        if self._running:
            self._step(self._running.popleft())

    def fail_all(self, failure: Failed) -> None:
        """Ends all jobs and what is computed for them."""
        with self._lock:
            left = list(self._open)
            for waiting in self._waiting.values():
                waiting.clear()
        for ticket in left:
            self._end(ticket, failure)
        for batch in self._running:
            batch.blocks.close()
        self._running.clear()

    def cancel_all(self) -> None:
        """Cancels every job; from any thread."""
        with self._lock:
            left = list(self._open)
        for ticket in left:
            ticket.cancel()

    def stats(self) -> Mapping[str, Any]:
        """Of each kind: jobs that wait, run and have ended, rows, batches, and what they took.

        Keys of a kind: "waiting", "running" (jobs), "finished", "cancelled", "deadline", "error" (jobs that have
        ended so), "rows", "batches" (begun), "made" (tokens or codes of finished rows), "prompt_tokens" (of
        finished jobs), "seconds" (in which the device worked for them).
        """
        with self._lock:
            open_jobs = list(self._open)
            counts = {kind: dict(counter) for kind, counter in self._counts.items()}
        names = (*OUTCOMES, "rows", "batches", "made", "prompt_tokens", "seconds")
        found = {}
        for kind in self._workers:
            of_kind = [ticket for ticket in open_jobs if ticket.kind == kind]
            waiting = sum(ticket.given == 0 for ticket in of_kind)
            found[kind] = {"waiting": waiting, "running": len(of_kind) - waiting}
            found[kind] |= {name: counts[kind].get(name, 0) for name in names}
        return found

    def _seconds_until_free(self, worker: Worker, waiting: int) -> float:
        """When a place may be free: after the batches that are ahead."""
        rounds = -(-waiting // (worker.max_rows * worker.max_batches))
        return max(1.0, self._batch_seconds[worker.kind] * rounds)

    def _end_late(self) -> None:
        now = time.monotonic()
        with self._lock:
            left = list(self._open)
        for ticket in left:
            if ticket.cancelled:
                self._end(ticket, Failed("cancelled", "the request was cancelled"))
            elif ticket.deadline is not None and now > ticket.deadline:
                self._end(ticket, Failed("deadline", "the request took longer than it may"))

    def _start(self, worker: Worker) -> None:
        """Begins batches while there is room for another of the kind."""
        while sum(batch.worker is worker for batch in self._running) < worker.max_batches:
            with self._lock:
                rows = self._take(worker)
            if not rows:
                return
            self._count(worker.kind, rows=len(rows), batches=1)
            self._running.append(_Batch(worker, rows))

    def _take(self, worker: Worker) -> list[Row]:
        """The rows of the next batch."""
        waiting = collections.deque(t for t in self._waiting[worker.kind] if t.alive)
        self._waiting[worker.kind] = waiting
        if not waiting:
            return []
        group = waiting[0].prepared.group
        jobs = [ticket for ticket in waiting if ticket.prepared.group == group]
        rows: list[Row] = []
        while jobs and len(rows) < worker.max_rows:
            for ticket in jobs[: worker.max_rows - len(rows)]:
                rows.append(Row(ticket.prepared.work, ticket.given, ticket))
                ticket.given += 1
            jobs = [ticket for ticket in jobs if ticket.given < ticket.prepared.rows]
        served = {row.ticket for row in rows}
        rest = [t for t in waiting if t not in served]
        rest += [t for t in waiting if t in served and t.given < t.prepared.rows]
        self._waiting[worker.kind] = collections.deque(rest)
        return rows

    def _drop_unwanted(self) -> None:
        """Ends batches that nobody waits for."""
        for batch in [batch for batch in self._running if not batch.wanted]:
            self._running.remove(batch)
            batch.blocks.close()

    def _step(self, batch: _Batch) -> None:
        """The next block of a batch; one that goes on gets its next turn after all others."""
        kind, began = batch.worker.kind, time.monotonic()
        failure = Failed("error", "the server has ended this request too early")
        try:
            outputs = next(batch.blocks, None)
        except Exception as error:
            log.exception("a batch (%s, %d rows) failed", kind, len(batch.rows))
            outputs, failure = None, Failed("error", explain(error))
        now = time.monotonic()
        self._count(kind, seconds=now - began)
        for number, said in outputs or ():
            if isinstance(said, RowDone):
                batch.open.discard(number)
            self._deliver(batch.rows[number].ticket, said)
        if outputs is None:
            for number in batch.open:
                self._end(batch.rows[number].ticket, failure)
        elif batch.open:
            self._running.append(batch)
        else:
            batch.blocks.close()
            before = self._batch_seconds[kind] or now - batch.began
            self._batch_seconds[kind] = (before + now - batch.began) / 2

    def _deliver(self, ticket: Ticket, said: Event | RowDone) -> None:
        if not ticket.alive:
            return
        if not isinstance(said, RowDone):
            ticket.send(said)
            return
        self._count(ticket.kind, made=said.made)
        ticket.row_done(said)
        if ticket.ended:
            self._count(ticket.kind, finished=1, prompt_tokens=ticket.prepared.prompt_tokens)
            with self._lock:
                self._open.discard(ticket)

    def _end(self, ticket: Ticket, failure: Failed) -> None:
        """Ends a job that has not ended."""
        with self._lock:
            if ticket not in self._open:
                return
            self._open.discard(ticket)
        self._count(ticket.kind, **{failure.kind: 1})
        ticket.send(failure)

    def _count(self, kind: str, **amounts: float) -> None:
        with self._lock:
            self._counts[kind].update(amounts)


def explain(error: Exception) -> str:
    """One line about what went wrong on the device, for whom it hits."""
    if isinstance(error, UserError):
        return printable(error, 300)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "the device is out of memory: try again later, or ask for less"
    return f"the server has failed at this request ({type(error).__name__})"
