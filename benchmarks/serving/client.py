"""One request as its client sees it: how it ended, after how long, and what came."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import httpx
import numpy as np

from benchmarks.serving.asks import CHAT, Ask

_HEADERS = {"Content-Type": "application/json"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
      ask: the request.
      ended: "answered" (by a whole answer, be it an error), "aborted" (by us), "stuck" (past the limit), or
        "broken" (the connection, or an answer that makes no sense).
      seconds: until then.
      status: of HTTP; None where none came.
      code: of an error, also of one within a stream.
      first: seconds until the first text or unfinished picture of a stream.
      digest: of the pictures or the text.
      tokens: or codes, that were made.
      retry_after: the header of that name.
      problem: what was broken.
    """

    ask: Ask
    ended: str
    seconds: float
    status: int | None = None
    code: str | None = None
    first: float | None = None
    digest: str | None = None
    tokens: int = 0
    retry_after: str | None = None
    problem: str | None = None

    @property
    def good(self) -> bool:
        """Whether it is what was asked for, without an error."""
        return self.ended == "answered" and self.status == 200 and self.code is None

    @property
    def refused(self) -> bool:
        """Whether there was no room for it, which is no fault."""
        return self.status == 429

    def about(self) -> str:
        """One line for a report of what went wrong."""
        ask = self.ask
        what = f"{ask.name} {ask.number}: {self.ended} after {self.seconds:.2f} s, status {self.status}"
        why = " ".join(filter(None, [self.code, self.problem]))
        return f"{what} {why} {ask.body[:200]!r}"


def connect(url: str) -> httpx.AsyncClient:
    """A client without limits of its own, which asks no proxy."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)


async def send(
    client: httpx.AsyncClient, ask: Ask, limit: float, abort: float | None = None
) -> Answer:
    """Sends a request and reads its answer.

    Args:
      client: from `connect`.
      ask: the request.
      limit: seconds after which it is "stuck".
      abort: seconds after which the connection is closed by us.
    """
    began = time.perf_counter()
    last = limit if abort is None else min(limit, abort)
    try:
        async with asyncio.timeout(last):
            return await _exchange(client, ask, began)
    except TimeoutError:
        ended = "stuck" if last == limit else "aborted"
        return Answer(ask, ended, time.perf_counter() - began)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"[:200]
        return Answer(ask, "broken", time.perf_counter() - began, problem=problem)


async def send_all(
    client: httpx.AsyncClient, asks: Iterable[Ask], clients: int, limit: float
) -> list[Answer]:
    """All of them, by so many clients, each of which sends the next one once it has its answer."""
    rest, answers = iter(asks), []

    async def work() -> None:
        for ask in rest:
            answers.append(await send(client, ask, limit))

    await asyncio.gather(*[work() for _ in range(clients)])
    return answers


def percentiles(values: Sequence[float | None]) -> dict[str, float] | None:
    """The median, 95 %, 99 % and the largest, in seconds; None of nothing."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    p50, p95, p99 = (float(x) for x in np.percentile(found, [50, 95, 99]))
    return {"p50": p50, "p95": p95, "p99": p99, "max": max(found)}


async def _exchange(client: httpx.AsyncClient, ask: Ask, began: float) -> Answer:
    since = lambda: time.perf_counter() - began
    request = client.stream("POST", ask.path, content=ask.body, headers=_HEADERS)
    async with request as response:
        status, after = response.status_code, response.headers.get("retry-after")
        if status != 200:
            code = json.loads(await response.aread())["error"]["code"]
            return Answer(ask, "answered", since(), status, code, retry_after=after)
        if ask.stream:
            return await _read_stream(response, ask, since)
        value = json.loads(await response.aread())
        seconds = since()
    if ask.path == CHAT:
        made = [value["choices"][0]["message"]["content"]]
        tokens = value["usage"]["completion_tokens"]
    else:
        made = [picture["b64_json"] for picture in value["data"]]
        tokens = value["usage"]["output_tokens"]
    return Answer(ask, "answered", seconds, status, digest=_digest(ask, made), tokens=tokens)


async def _read_stream(response: httpx.Response, ask: Ask, since: Any) -> Answer:
    first, pieces, pictures, tokens, done = None, [], {}, 0, False
    async for data in _events(response):
        if data == b"[DONE]":
            done = True
            continue
        value = json.loads(data)
        if "error" in value:
            code = value["error"]["code"]
            return Answer(ask, "answered", since(), response.status_code, code, first)
        if ask.path == CHAT:
            text = "".join(c["delta"].get("content") or "" for c in value["choices"])
            new = bool(text)
            pieces.append(text)
            tokens = (value.get("usage") or {}).get("completion_tokens", tokens)
        else:
            new = True
            if value["type"] == "image_generation.completed":
                pictures[value["image_index"]] = value["b64_json"]
                tokens = value["usage"]["output_tokens"]
        if new and first is None:
            first = since()
    if ask.path == CHAT and not done:
        raise ValueError("the stream ended without [DONE]")
    made = ["".join(pieces)] if ask.path == CHAT else [pictures[i] for i in sorted(pictures)]
    digest = _digest(ask, made)
    return Answer(
        ask, "answered", since(), response.status_code, None, first, digest, tokens=tokens
    )


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each server-sent event."""
    rest = b""
    async for part in response.aiter_bytes():
        *blocks, rest = (rest + part).split(b"\n\n")
        for block in blocks:
            yield block.rpartition(b"data: ")[2]
    if rest:
        raise ValueError("the stream ended within an event")


def _digest(ask: Ask, made: Sequence[str]) -> str:
    """Raises ValueError unless there are as many PNG files as were asked for."""
    if ask.pictures:
        if len(made) != ask.pictures:
            raise ValueError(f"{len(made)} pictures instead of {ask.pictures}")
        for encoded in made:
            if not base64.b64decode(encoded, validate=True).startswith(b"\x89PNG"):
                raise ValueError("a picture that is no PNG")
    return hashlib.sha256("\n".join(made).encode()).hexdigest()[:16]
