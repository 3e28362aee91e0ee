"""Server-sent events of a job."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from janus_jax.serving.http.errors import ApiError, of_exception
from janus_jax.serving.http.running import Running

READING = 60.0  # seconds after the deadline of a job in which its last events have to be read
DONE = b"data: [DONE]\n\n"


def sse(data: Any, event: str | None = None) -> bytes:
    """One event; `event` is its name."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


class EventStream(StreamingResponse):
    """Sends events as they come.

    That the client has gone is seen by `Running`, which reads from the connection; Starlette's own response would
    read from it, too.

    Args:
      chunks: what is sent.
      opened: what is left when the answer ends, however it does.
      end: of `time.monotonic()`, when a client that does not read is given up; it would hold pictures for ever.
    """

    def __init__(self, chunks: AsyncIterator[bytes], opened: AsyncExitStack, end: float):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, headers=headers, media_type="text/event-stream")
        self._opened, self._end = opened, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opened:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(self._end - time.monotonic(), 0)):
                    await self.stream_response(send)


async def stream(running: Running, chunks: AsyncGenerator[bytes, None]) -> EventStream:
    """The answer that streams what `chunks` makes of the events of a job.

    It waits for the first of them, so that a job that fails before is answered with the status of its error. What
    goes wrong later is an event of its own, as OpenAI's clients expect it, and the last one.

    Args:
      running: the job, not entered yet.
      chunks: iterates over `running.events()`.
    """
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running)
        await stack.enter_async_context(aclosing(chunks))
        first = await anext(chunks)
        rest = await stack.enter_async_context(aclosing(_with_errors(first, chunks)))
        return EventStream(rest, stack.pop_all(), running.deadline + READING)


async def _with_errors(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        yield sse(of_exception(error).body(), "error")
        if not isinstance(error, ApiError):
            raise
