"""How large requests may be, and what reads them within that."""

from __future__ import annotations

import asyncio
import dataclasses

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_jax.serving.http.errors import ApiError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one request, unless it says otherwise.

    Attributes:
      body: bytes.
      bodies: bytes of all requests that are being read or worked on.
      body_seconds: within which a body has to arrive.
      seconds: from the end of the body to the last event of the job.
      pictures: of one request.
      picture_bytes, picture_pixels: of one picture.
      text: letters of a prompt, or of all messages together.
      messages: of a conversation.
      drawn: most pictures of one request to draw.
      previews: unfinished pictures of each.
      tokens: most of an answer.
      stops: texts that end an answer.
      fetch_seconds: for one picture from another host, from its name to its last byte.
      fetches: pictures of all requests that are fetched at the same time; each may hold `picture_bytes`.
    """

    body: int = 20 * 2**20
    bodies: int = 512 * 2**20
    body_seconds: float = 60.0
    seconds: float = 300.0
    pictures: int = 8
    picture_bytes: int = 10 * 2**20
    picture_pixels: int = 25 * 10**6
    text: int = 100_000
    messages: int = 200
    drawn: int = 10
    previews: int = 3
    tokens: int = 1024
    stops: int = 4
    fetch_seconds: float = 5.0
    fetches: int = 16


class BodyLimit:
    """Reads a body before the application sees the request, within limits of size and time.

    What comes after the body, which is that the client went away, passes through.
    """

    def __init__(self, app: ASGIApp, limits: Limits):
        self._app, self._limits = app, limits
        self._held = 0  # bytes of bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = [0]
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await self._read(scope, receive, taken)
            if body is None:  # the client is gone
                return
            waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Message:
                return waiting.pop() if waiting else await receive()

            await self._app(scope, replay, send)
        except TimeoutError:
            error = ApiError("the body did not arrive in time", 408, code="body_timeout")
            await refuse(error, scope, receive, send)
        except _Refused as refused:
            await refuse(refused.error, scope, receive, send)
        finally:
            self._held -= taken[0]

    async def _read(self, scope: Scope, receive: Receive, taken: list[int]) -> bytes | None:
        """The body, None if the client went away; `taken` becomes its bytes."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._limits.body:
            raise self._too_large()
        parts = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            taken[0] += len(part)
            self._held += len(part)
            if taken[0] > self._limits.body:
                raise self._too_large()
            if self._held > self._limits.bodies:
                busy = "the server holds too many large requests: try again in 1 s"
                headers = {"Retry-After": "1"}
                raise _Refused(ApiError(busy, 429, code="queue_full", headers=headers))
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self) -> _Refused:
        most = self._limits.body / 2**20
        return _Refused(
            ApiError(f"the body has more than {most:g} MiB", 413, code="body_too_large")
        )


class _Refused(Exception):
    def __init__(self, error: ApiError):
        super().__init__(error.message)
        self.error = error


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with an error; the connection ends, as the body may not have been read."""
    headers = error.headers | {"Connection": "close"}
    await JSONResponse(error.body(), error.status, headers)(scope, receive, send)
