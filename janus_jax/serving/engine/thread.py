"""The engine of the server: a thread that owns the device, between requests of many users and one model."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from janus_jax.inference import Janus
from janus_jax.inference.drawing import Progress
from janus_jax.inference.memory import free_bytes
from janus_jax.inference.programs import ProgramList
from janus_jax.serving.engine.chatting import Chatting
from janus_jax.serving.engine.drawing import Drawing
from janus_jax.serving.engine.scheduling import Scheduler, Ticket, Worker
from janus_jax.serving.jobs import Event, Failed, Job, QueueFull

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16)
SHARE = 0.9  # of the free memory


class WorkerThread:
    """A `jobs.Engine` of any workers: their jobs are done in a thread of its own, which runs from the start.

    Args:
      workers: one a kind of jobs.
      max_waiting: most pictures, and most answers, that wait for a place.
    """

    def __init__(self, workers: Sequence[Worker], max_waiting: int = 256):
        self._changed = threading.Condition()
        self._scheduler = Scheduler(workers, max_waiting, self._wake)
        self._closing = self._cancelling = self._stopped = self._failed = False
        self._thread = threading.Thread(target=self._work, name="janus-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are done without waiting for a compiler."""
        return not self._closing

    @property
    def failed(self) -> bool:
        """See `jobs.Engine.failed`."""
        return self._failed

    def submit(
        self, job: Job, on_event: Callable[[Event], None], deadline: float | None = None
    ) -> Ticket:
        """See `jobs.Engine.submit`. Raises QueueFull, too, once the engine is closed."""
        if self._closing:
            raise QueueFull(10)
        ticket = self._scheduler.add(job, on_event, deadline)
        if self._cancelling:  # in the meantime: `close` has not seen this job
            ticket.cancel()
        if self._stopped:  # nobody else would end it
            self._scheduler.fail_all(Failed("error", "the server has stopped"))
        return ticket

    def stats(self) -> Mapping[str, Any]:
        """See `Scheduler.stats`."""
        return self._scheduler.stats()

    def close(self, drain: bool = True) -> None:
        """Takes nothing more, ends all jobs (see `jobs.Engine.close`), and returns when they have ended."""
        self._closing = True
        if not drain:
            self._cancelling = True
            self._scheduler.cancel_all()
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        scheduler = self._scheduler
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or not scheduler.idle)
                if self._closing and scheduler.idle:
                    return
                scheduler.tick()
        except BaseException:
            log.exception("the engine has stopped")
            self._failed = True
        finally:
            self._closing = self._stopped = True
            scheduler.fail_all(Failed("error", "the server has stopped"))


class ServingEngine(WorkerThread):
    """A `jobs.Engine` on a model. `warm_up` makes it `ready`; before, jobs are taken and wait for the compiler.

    Args:
      janus: the model; nothing else may use it meanwhile.
      sizes: numbers of rows that programs are compiled for; a block takes the next larger one. Those that do not
        fit into memory are left out.
      longest_prompt: tokens of a prompt of a picture, with its chat template.
      context: tokens of a conversation with its pictures and its answer, which is cut there.
      most_pictures: of a conversation, as far as they fit into `context`.
      max_waiting: see `WorkerThread`.

    Raises:
      UserError: not even one row fits into memory.
    """

    def __init__(
        self,
        janus: Janus,
        *,
        sizes: Sequence[int] = SIZES,
        longest_prompt: int = 256,
        context: int = 4096,
        most_pictures: int = 8,
        max_waiting: int = 256,
    ):
        janus = copy.copy(janus)  # each kind has half of the memory
        janus.memory_limit = (janus.memory_limit or int(SHARE * free_bytes())) // 2
        self._drawing = Drawing(janus, sizes, longest_prompt)
        self._chatting = Chatting(janus, sizes, context, most_pictures)
        self._warm = False
        super().__init__([self._drawing, self._chatting], max_waiting)

    @property
    def ready(self) -> bool:
        """Whether all programs are compiled."""
        return self._warm and super().ready

    @property
    def places(self) -> tuple[int, int]:
        """How many pictures, and how many answers, are computed together."""
        return self._drawing.places, self._chatting.places

    def warm_up(self, progress: Progress | None = None) -> int:
        """Compiles every program that a job can need, in the calling thread; ends early if the engine is closed.

        Args:
          progress: wraps the list of programs, such as `tqdm.tqdm`.

        Returns:
          The number of programs.
        """
        found = _Listing(lambda: self._closing)
        try:
            self._drawing.list_programs(found)
            self._chatting.list_programs(found)
        except _Closed:
            return 0
        programs = found.programs
        for program in progress(programs) if progress else programs:
            if self._closing:
                return 0
            program.compile()
        self._warm = True
        return len(programs)


class _Closed(Exception):
    """The engine is closed before it is ready."""


class _Listing(ProgramList):
    """Stops between two programs, of which each takes a while to trace, once `closed` says so."""

    def __init__(self, closed: Callable[[], bool]):
        super().__init__()
        self._closed = closed

    def __call__(self, function: Any, *args: Any, **static: Hashable) -> Any:
        if self._closed():
            raise _Closed
        return super().__call__(function, *args, **static)
