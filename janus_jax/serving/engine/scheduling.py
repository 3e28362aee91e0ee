"""Which rows of which jobs get a place, and who has the device next.

No threads and no model: `Scheduler.tick` does one block. Whatever knows how rows are computed is a `Worker`, one
for drawing and one for answers; each has its own places and its own queue, so that neither waits for the other.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from janus_jax.errors import UserError
from janus_jax.serving.jobs import Event, Failed, Finished, Job, QueueFull
from janus_jax.untrusted import printable

log = logging.getLogger(__name__)

OUTCOMES = ("finished", "cancelled", "deadline", "error")
STARTING = 0.3  # seconds of prompts, about; then those that are being computed get their turn
HOPELESS = 8  # blocks in a row that fail: the device is gone, and a new process may get it back


class Prepared(NamedTuple):
    """A job that was checked.

    Attributes:
      rows: how many it has: pictures, or one answer.
      prompt_tokens: positions of the prompt.
      work: what the worker needs of it.
    """

    rows: int
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
      given: rows that have or had a place.
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


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One picture or answer.

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


# The place of a row, and what is said of it
Output = tuple[int, Event | RowDone]


class Worker(Protocol):
    """Knows how rows are computed, which have places of equal rights.

    Attributes:
      kind: its name in `stats`.
      places: how many rows there can be at once.
    """

    kind: str
    places: int

    def takes(self, job: Job) -> bool:
        """Whether a job is of its kind."""
        ...

    def prepare(self, job: Job) -> Prepared:
        """Checks a job without the device, in any thread. Raises UserError."""
        ...

    def start(self, place: int, row: Row) -> None:
        """Gives a row a free place, beside those that are in the middle. If it raises, the place is still free."""
        ...

    def step(self) -> list[Output]:
        """A block of all rows. Says `RowDone` once of each, and nothing of it afterwards, until it is stopped."""
        ...

    def stop(self, place: int) -> None:
        """Frees the place of a row, done or not."""
        ...

    @property
    def intact(self) -> bool:
        """Whether its rows are still there, after something has raised."""
        ...

    def reset(self) -> None:
        """Forgets all rows: they are lost."""
        ...


class Scheduler:
    """Jobs in, events out. `add` may be called from any thread, `tick` from one.

    The workers take turns, so that each that has rows gets the same time of the device. Jobs give a row each in
    turn, so that a single picture does not wait for all of a large job.

    Args:
      workers: one a kind.
      max_waiting: most rows of a kind that wait for a place.
      wake: is called when there is something new to do.
      clock: seconds, of which the workers get equal shares.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        max_waiting: int = 256,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._workers = {worker.kind: worker for worker in workers}
        self._max_waiting, self._wake, self._clock = max_waiting, wake, clock
        self._lock = threading.Lock()
        self._waiting: dict[str, collections.deque[Ticket]] = {
            kind: collections.deque() for kind in self._workers
        }
        self._running: dict[str, dict[int, Row]] = {kind: {} for kind in self._workers}
        self._shares = {kind: 0.0 for kind in self._workers}  # seconds of the device, see `_spend`
        self._turns = {kind: 0 for kind in self._workers}  # the last block of a kind
        self._blocks = 0
        self._open: set[Ticket] = set()  # taken, and not ended
        self._counts = {kind: collections.Counter() for kind in self._workers}
        self._begun: dict[Row, float] = {}
        self._failures = 0  # blocks since the last one that went well
        self._row_seconds = {kind: 0.0 for kind in self._workers}

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
        """Rows that wait for a place, also of jobs that were cancelled since the last tick: they take memory."""
        return sum(t.prepared.rows - t.given for t in self._waiting[kind])

    @property
    def idle(self) -> bool:
        """Whether no job is open."""
        return not self._open

    @property
    def running(self) -> bool:
        """Whether a row has a place."""
        return any(self._running.values())

    def tick(self) -> None:
        """Ends what was cancelled or is too late, fills free places, and does the next block of a worker.

        Raises:
          RuntimeError: `HOPELESS` blocks in a row have failed, whose jobs have heard of it.
        """
        self._end_late()
        self._drop_unwanted()
        for worker in self._workers.values():
            self._start(worker)
        running = [kind for kind, rows in self._running.items() if rows]
        if running:
            kind = min(running, key=lambda kind: (self._shares[kind], self._turns[kind]))
            self._blocks += 1
            self._turns[kind] = self._blocks
            self._step(self._workers[kind])

    def fail_all(self, failure: Failed) -> None:
        """Ends all jobs and what is computed for them."""
        with self._lock:
            left = list(self._open)
            for waiting in self._waiting.values():
                waiting.clear()
        for ticket in left:
            self._end(ticket, failure)
        for worker in self._workers.values():
            self._reset(worker)

    def cancel_all(self) -> None:
        """Cancels every job; from any thread."""
        with self._lock:
            left = list(self._open)
        for ticket in left:
            ticket.cancel()

    def stats(self) -> Mapping[str, Any]:
        """Of each kind: jobs that wait, run and have ended, rows, blocks, and what they took.

        Keys of a kind: "waiting", "running" (jobs), "finished", "cancelled", "deadline", "error" (jobs that have
        ended so), "rows" (begun), "blocks", "block_rows" (rows of all blocks together: those of a block on average
        are `block_rows / blocks`), "made" (tokens or codes of finished rows), "prompt_tokens" (of finished jobs),
        "seconds" (in which the device worked for them).
        """
        with self._lock:
            open_jobs = list(self._open)
            counts = {kind: dict(counter) for kind, counter in self._counts.items()}
        names = (*OUTCOMES, "rows", "blocks", "block_rows", "made", "prompt_tokens", "seconds")
        found = {}
        for kind in self._workers:
            of_kind = [ticket for ticket in open_jobs if ticket.kind == kind]
            waiting = sum(ticket.given == 0 for ticket in of_kind)
            found[kind] = {"waiting": waiting, "running": len(of_kind) - waiting}
            found[kind] |= {name: counts[kind].get(name, 0) for name in names}
        return found

    def _seconds_until_free(self, worker: Worker, waiting: int) -> float:
        """When a place may be free: after the rows that are ahead."""
        rounds = -(-waiting // worker.places)
        return max(1.0, self._row_seconds[worker.kind] * rounds)

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
        """Fills free places, unless that takes too long for those that are in the middle."""
        running, end = self._running[worker.kind], None
        for place in range(worker.places):
            if place in running:
                continue
            if end is not None and time.monotonic() > end:
                return
            with self._lock:
                row = self._take(worker.kind)
            if row is None:
                return
            start, began = time.monotonic(), self._clock()
            end = end or start + STARTING
            self._catch_up(worker.kind)
            try:
                worker.start(place, row)
            except Exception as error:
                log.exception("a job (%s) could not be started", worker.kind)
                self._end(row.ticket, Failed("error", explain(error)))
                self._drop_unwanted()
                if not worker.intact:
                    self._fail(worker, error)
            else:
                running[place] = row
                self._begun[row] = start
                self._count(worker.kind, rows=1)
            self._spend(worker.kind, self._clock() - began)

    def _spend(self, kind: str, seconds: float) -> None:
        self._shares[kind] += seconds
        self._count(kind, seconds=seconds)

    def _catch_up(self, kind: str) -> None:
        """A kind that had nothing to do has saved no time for later."""
        others = [self._shares[k] for k, rows in self._running.items() if rows and k != kind]
        if others and not self._running[kind]:
            self._shares[kind] = max(self._shares[kind], min(others))

    def _take(self, kind: str) -> Row | None:
        """The next row that waits; a job that has more goes to the end of the queue."""
        waiting = self._waiting[kind]
        while waiting:
            ticket = waiting.popleft()
            if not ticket.alive:
                continue
            row = Row(ticket.prepared.work, ticket.given, ticket)
            ticket.given += 1
            if ticket.given < ticket.prepared.rows:
                waiting.append(ticket)
            return row
        return None

    def _drop_unwanted(self) -> None:
        """Frees the places of rows that nobody waits for."""
        for kind, running in self._running.items():
            for place in [place for place, row in running.items() if not row.alive]:
                self._free(self._workers[kind], place)

    def _free(self, worker: Worker, place: int) -> None:
        worker.stop(place)
        row = self._running[worker.kind].pop(place)
        self._begun.pop(row, None)

    def _step(self, worker: Worker) -> None:
        """The next block of a worker."""
        kind, running, began = worker.kind, self._running[worker.kind], self._clock()
        self._count(kind, blocks=1, block_rows=len(running))
        try:
            outputs = worker.step()
        except Exception as error:
            log.exception("a block (%s, %d rows) failed", kind, len(running))
            self._fail(worker, error)
            self._failures += 1
            if self._failures == HOPELESS:
                raise RuntimeError(f"{HOPELESS} blocks in a row have failed") from error
            return
        self._failures = 0
        self._spend(kind, self._clock() - began)
        now = time.monotonic()
        for place, said in outputs:
            row = running[place]
            self._deliver(row.ticket, said)
            if isinstance(said, RowDone):
                took = now - self._begun[row]
                self._row_seconds[kind] = ((self._row_seconds[kind] or took) + took) / 2
                self._free(worker, place)

    def _fail(self, worker: Worker, error: Exception) -> None:
        """Ends the jobs whose rows a worker has lost."""
        for row in list(self._running[worker.kind].values()):
            self._end(row.ticket, Failed("error", explain(error)))
        self._reset(worker)

    def _reset(self, worker: Worker) -> None:
        for row in self._running[worker.kind].values():
            self._begun.pop(row, None)
        self._running[worker.kind].clear()
        worker.reset()

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
            with contextlib.suppress(ValueError):  # all of its rows have had a place
                self._waiting[ticket.kind].remove(ticket)
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
