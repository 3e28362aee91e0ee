"""The events of a job for a page, which shows the newest state and need not see every step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from janus_jax.errors import UserError
from janus_jax.serving.http.context import Context
from janus_jax.serving.http.errors import ApiError, of_exception
from janus_jax.serving.jobs import Event, Job, QueueFull
from janus_jax.serving.page.sessions import Visit

log = logging.getLogger(__name__)

TICK = 1.0  # seconds after which a page is told again how many wait
PAUSE = 0.05  # seconds between two views: each is a message to the browser


class Following:
    """Use as `async with Following(...) as following`: takes the events as fast as they come; to leave it cancels
    the job, unless it has ended.

    Args:
      context: of the application.
      job: is handed in.
      visit: whose end cancels the job.
      take: is called with every event.

    Attributes:
      taken: the engine has the job.
      ended: nothing more comes.
      failure: why, unless the job went well. Also a job that was not taken is one that has failed.
    """

    def __init__(self, context: Context, job: Job, visit: Visit, take: Callable[[Event], None]):
        self._running, self._take = context.run(job, visit), take
        self._changed = asyncio.Event()
        self.taken, self.ended = False, False
        self.failure: ApiError | None = None

    async def __aenter__(self) -> Following:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def news(self) -> None:
        """Waits until there is something new, or for `TICK`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK):
                await self._changed.wait()
        if not self.ended:
            await asyncio.sleep(PAUSE)
        self._changed.clear()

    async def _follow(self) -> None:
        try:
            async with self._running as running:
                self.taken = True
                async for event in running.events():
                    self._take(event)
                    self._changed.set()
        except Exception as error:
            if not isinstance(error, ApiError | QueueFull | UserError):
                log.exception("a job of the page failed")
            self.failure = of_exception(error)
        finally:
            self.ended = True
            self._changed.set()


def was_stopped(failure: ApiError) -> bool:
    """Whether a job was cancelled, which is no fault."""
    return failure.code == "cancelled"


class Waiting:
    """How many jobs are before one. Only an estimate: the engine says how many wait, not in which order.

    Args:
      context: of the application; make it before the job is handed in.
      kind: of the job, as `Engine.stats` names it.
    """

    def __init__(self, context: Context, kind: str):
        self._engine, self._kind = context.engine, kind
        self._before = self._now()

    def _now(self) -> int:
        return int(self._engine.stats().get(self._kind, {}).get("waiting", 0))

    def line(self, taken: bool) -> str:
        """What to say until the first event comes; `taken`: the job is among those that wait."""
        if taken:  # those that came later wait as well: the number that waits can only lower it
            self._before = min(self._before, max(self._now() - 1, 0))
        before = f", {self._before} waiting before you" if self._before else ""
        if not self._engine.ready:
            return f"The model is being compiled, this comes right after{before}"
        return f"Waiting for the model{before}"
