"""A job as the event loop sees it: handed in, its events, and cancelled once nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from starlette.types import Message

from janus_jax.serving.http.errors import ApiError, of_failed
from janus_jax.serving.jobs import DrawJob, Engine, Event, Failed, Finished, Job, Ticket

# Letters: what is shorter is read at once, as a thread would have to wait for its turn.
SMALL = 2**14
GRACE = 5.0  # seconds after the deadline in which the engine may say so itself
T = TypeVar("T")


async def in_thread(pool: ThreadPoolExecutor, function: Callable[..., T], *args: object) -> T:
    """What takes more than a few milliseconds, beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


class Connection(Protocol):
    """Of a client, such as a `Request` whose body was read."""

    async def receive(self) -> Message:
        """Returns with a message of type "http.disconnect" when the client has gone."""
        ...


async def unless_gone(client: Connection, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled if the client goes away meanwhile.

    Raises:
      ApiError: the client has gone.
    """
    working, watching = asyncio.create_task(work), asyncio.create_task(_closed(client))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError("the client has gone", 499, code="cancelled")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _closed(client: Connection) -> None:
    """Waits for what follows the body, which is that the connection is closed."""
    while (await client.receive())["type"] != "http.disconnect":
        pass


class Running:
    """Use as `async with Running(...) as running`: to leave it cancels what has not ended.

    Args:
      engine: does it.
      job: what to do.
      client: waits for it; if it goes away the job is cancelled.
      seconds: until the deadline.
      pool: threads for what must not hold up the event loop.

    Attributes:
      deadline: of `time.monotonic()`.

    Raises:
      QueueFull, UserError: from `__aenter__`, see `Engine.submit`.
    """

    def __init__(
        self, engine: Engine, job: Job, client: Connection, seconds: float, pool: ThreadPoolExecutor
    ):
        self._engine, self._job, self._client, self._pool = engine, job, client, pool
        self.deadline = time.monotonic() + seconds
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._ticket: Ticket | None = None
        self._ended = False

    async def __aenter__(self) -> Running:
        self._loop = asyncio.get_running_loop()
        if _is_small(self._job):
            self._ticket = self._submit()
        else:  # to check pictures and to count the tokens of a long text takes a while
            submitted = self._pool.submit(self._submit)
            try:
                self._ticket = await asyncio.wrap_future(submitted)
            except asyncio.CancelledError:  # the server ends
                submitted.add_done_callback(_cancel_taken)
                raise
        self._watcher = asyncio.create_task(self._watch())
        return self

    def _submit(self) -> Ticket:
        return self._engine.submit(self._job, self._put, self.deadline)

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()
        if not self._ended:
            self._ticket.cancel()

    async def events(self) -> AsyncIterator[Event]:
        """The events up to `Finished`.

        Raises:
          ApiError: instead of `Failed`.
        """
        while not self._ended:
            event = await self._next()
            self._ended = isinstance(event, Finished | Failed)
            if isinstance(event, Failed):
                raise of_failed(event)
            yield event

    async def _next(self) -> Event:
        left = self.deadline + GRACE - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0)):
                return await self._events.get()
        except TimeoutError:  # the engine is stuck: the client is answered all the same
            self._ticket.cancel()
            return Failed("deadline", "the engine does not answer")

    def _put(self, event: Event) -> None:
        """In the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _watch(self) -> None:
        await _closed(self._client)
        self._ticket.cancel()


def _is_small(job: Job) -> bool:
    if isinstance(job, DrawJob):
        return len(job.prompt) <= SMALL
    if any(message.pictures for message in job.messages):
        return False
    return sum(len(message.text) for message in job.messages) <= SMALL


def _cancel_taken(submitted: Future[Ticket]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


async def collect(running: Running) -> list[Event]:
    """All events of a job that is answered at once.

    Raises:
      ApiError: it has failed.
    """
    return [event async for event in running.events()]
