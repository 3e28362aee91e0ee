"""What stands before Gradio: which of its routes and what of the disk is reached, and when a browser has gone.

Gradio has many routes that this page does not need. Some fetch URLs, and a request may name a path of this
machine: what is not listed here does not exist.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.fields import parse_json
from janus_jax.serving.http.limits import refuse
from janus_jax.serving.page.files import PictureFiles
from janus_jax.serving.page.sessions import Sessions

_API = "/gradio_api"
_FILE = f"{_API}/file="
_HEARTBEAT, _DATA = f"{_API}/heartbeat/", f"{_API}/queue/data"
_READ = re.compile(
    r"/?|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/.*"
    rf"|{_API}/(file=.*|heartbeat/[^/]+|queue/data|upload_progress|startup-events|theme\.css|info/?|app_id/?)",
    re.DOTALL,
)
_WRITE = re.compile(rf"{_API}/(queue/join|run/predict|upload|cancel|reset)/?")
_GRACE = 2.0  # seconds in which Gradio may end an answer that nobody waits for
# Everything is of this server: no fonts, scripts or pictures of others, and no frame of others around it.
# Gradio's HTML parts are templates that its scripts evaluate; what is put into them here is escaped.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
]


class Guard:
    """Wraps the application of Gradio, and is mounted in its place.

    Args:
      app: of Gradio.
      sessions: those that a browser leaves are told.
      files: the only ones that can be read.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, files: PictureFiles):
        self._app, self._sessions, self._files = app, sessions, files
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Ends connections that only say that a browser is still there, and would keep a server from stopping.

        What is being drawn or answered goes on. In the event loop only.
        """
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Of a mounted application `path` is the whole path, and `root_path` what it is mounted at.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        send = _with_headers(send)
        routes = {"GET": _READ, "HEAD": _READ, "POST": _WRITE}.get(scope["method"])
        if routes is None or not routes.fullmatch(path):
            error = ApiError("there is no such part of the page", 404, code="not_found")
            await refuse(error, scope, receive, send)
        elif path.startswith(_FILE) and not self._files.holds(path.removeprefix(_FILE)):
            error = ApiError("there is no such picture", 404, code="not_found")
            await refuse(error, scope, receive, send)
        elif path.startswith(_HEARTBEAT):
            await self._stream(scope, receive, send, path.removeprefix(_HEARTBEAT), idle=True)
        elif path == _DATA:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            session = query.get("session_hash", [""])[0]
            await self._stream(scope, receive, send, session, idle=False)
        elif scope["method"] == "POST":
            await self._post(scope, receive, send, path)
        else:
            await self._app(scope, receive, send)

    async def _post(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """The body is in memory, within `BodyLimit`."""
        first = await receive()
        if path.startswith(f"{_API}/upload"):
            await asyncio.to_thread(self._files.trim)
        else:
            try:
                await asyncio.to_thread(self._check_paths, first.get("body", b""))
            except ApiError as error:
                await refuse(error, scope, receive, send)
                return
        waiting = [first]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    def _check_paths(self, body: bytes) -> None:
        """Raises ApiError unless a body is JSON in which every path is that of a file of the page.

        Gradio would copy others, or fetch them if they are URLs, and hand them out.
        """
        left = [parse_json(body)] if body else []
        while left:
            value = left.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and self._files.holds(path)):
                    what = "the request names a file that is not of this page"
                    raise ApiError(what, 403, code="path")
                left.extend(value.values())
            elif isinstance(value, list):
                left.extend(value)

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, session: str, idle: bool
    ) -> None:
        """An answer that goes on until the browser has gone, who is known to have gone at once.

        Args:
          session: of the page.
          idle: ends when the server does, without anything being left.
        """
        gone = asyncio.Event()
        asked: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def told() -> Message:
            if asked:
                return asked.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        answering = asyncio.ensure_future(self._app(scope, told, send))
        leaving = asyncio.create_task(_until_gone(receive))
        tasks: list[asyncio.Future[Any]] = [answering, leaving]
        if idle:
            tasks.append(asyncio.create_task(self._closing.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and not answering.done():
                self._sessions.leave(session)
            gone.set()
            await asyncio.wait([answering], timeout=_GRACE)
            if answering.done():
                answering.result()
        finally:
            for task in tasks:
                task.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return sending
