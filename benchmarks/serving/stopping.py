"""SIGTERM while requests are being answered: they are answered, new ones are not, and the exit code is 0."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import httpx

from benchmarks.serving.asks import chat, draw
from benchmarks.serving.checks import Check, check_ended
from benchmarks.serving.client import connect, send
from benchmarks.serving.server import Server

CLIENTS = 8
PICTURES = 10  # of a request: it has to take longer than the server needs to hear the signal
_REFUSED = 2.0  # seconds within which new connections are refused


async def measure(server: Server, clients: int, limit: float) -> dict[str, Any]:
    """Stops a server that was started here; afterwards it is gone."""
    asks = [
        draw(number, PICTURES, stream=number % 4 == 0) if number % 2 == 0 else chat(number)
        for number in range(clients)
    ]
    async with connect(server.url) as client, connect(server.url) as idle:
        await idle.get("/health")  # a connection that is kept and idle when the signal comes
        running = [asyncio.create_task(send(client, ask, limit)) for ask in asks]
        least = sum(bool(ask.pictures) for ask in asks)  # short answers may be there already
        seen = await server.wait_open(least, clients, limit)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        refused = await _seconds_until_refused(server, began)
        left = sum(not task.done() for task in running)
        kept = await _answers(idle)
        answers = await asyncio.gather(*running)
        answered = time.monotonic() - began
    code = await server.wait_exit(limit)
    ended = time.monotonic() - began
    bad = [answer.about() for answer in answers if not answer.good]
    return {
        "requests": clients,
        "in_flight_when_refused": left,
        "refused_after_s": refused,
        "answered_after_s": answered,
        "ended_after_s": ended,
        "exit_code": code,
        "checks": [
            Check(
                "all were in flight at the signal",
                seen is not None,
                f"{least} or more of {clients}",
            ),
            check_ended(answers, "what is in flight at SIGTERM is answered"),
            Check("and answered with 200", not bad, "; ".join(bad[:3]) or f"{len(answers)}"),
            Check(
                "new connections are refused meanwhile",
                False if refused is None else True if left else None,
                f"after {refused:.2f} s, with {left} in flight" if refused is not None else "never",
            ),
            Check("and so is one that was kept idle", not kept),
            Check("the exit code is 0", code == 0, f"{code}, after {ended:.2f} s"),
        ],
    }


async def _seconds_until_refused(server: Server, began: float) -> float | None:
    while time.monotonic() - began < _REFUSED:
        async with connect(server.url) as client:
            if not await _answers(client):
                return time.monotonic() - began
        await asyncio.sleep(0.02)
    return None


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        async with asyncio.timeout(_REFUSED):
            await client.get("/health")
        return True
    except (httpx.TransportError, TimeoutError):
        return False
