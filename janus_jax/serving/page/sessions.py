"""Which jobs a page in a browser has running, so that they end when it is closed, or when somebody says stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from starlette.types import Message


class Visit:
    """One job of a page. To `Running` it is the connection whose end cancels the job."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def leave(self) -> None:
        """Nobody waits for the job any more. In the event loop only."""
        self._gone.set()

    async def receive(self) -> Message:
        """Returns once nobody waits."""
        await self._gone.wait()
        return {"type": "http.disconnect"}


class Sessions:
    """The visits of every page that is open, by its session: a page that is loaded again is another session."""

    def __init__(self) -> None:
        self._visits: dict[str, dict[Visit, str]] = {}

    @contextlib.contextmanager
    def visit(self, session: str, kind: str) -> Iterator[Visit]:
        """A job of a session, while it runs; `kind` is "draw" or "chat"."""
        visit = Visit()
        self._visits.setdefault(session, {})[visit] = kind
        try:
            yield visit
        finally:
            visits = self._visits[session]
            del visits[visit]
            if not visits:
                del self._visits[session]

    def runs(self, session: str, kind: str) -> bool:
        """Whether a session has a job of a kind."""
        return kind in self._visits.get(session, {}).values()

    def leave(self, session: str, kind: str | None = None) -> None:
        """Cancels what a session has running, of one kind or all."""
        for visit, of_kind in self._visits.get(session, {}).items():
            if kind in (None, of_kind):
                visit.leave()
