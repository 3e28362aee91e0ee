"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from janus_jax.serving.http.context import Context, read_json
from janus_jax.serving.http.running import Running, collect, in_thread, unless_gone
from janus_jax.serving.http.schemas import ChatRequest, chat_request
from janus_jax.serving.http.sse import DONE, sse, stream
from janus_jax.serving.jobs import Delta, Finished


async def complete_chat(request: Request, context: Context) -> Response:
    """Answers a conversation, at once or with events."""
    body = await read_json(request, context)
    known = (context.card, context.limits, context.fetcher.hosts)
    asked = await in_thread(context.pool, chat_request, body, *known)
    if asked.remote:
        await unless_gone(request, context.fetcher.fill(asked.remote, context.pool))
    running = context.run(asked.job, request)
    about = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": context.card.name,
        "seed": asked.job.seed,
    }
    if asked.stream:
        about |= {"object": "chat.completion.chunk"}
        return await stream(running, _chunks(running, asked, about))
    async with running:
        events = await collect(running)
    text = "".join(event.text for event in events if isinstance(event, Delta))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": events[-1].reason,
    }
    about |= {"object": "chat.completion", "choices": [choice]}
    return JSONResponse(about | {"usage": _usage(events[-1])})


async def _chunks(
    running: Running, asked: ChatRequest, about: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """A chunk with the role, the pieces, the reason of the end, perhaps the number of tokens, `[DONE]`."""

    def chunk(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if asked.usage else {}  # as OpenAI: null but in the last
        return sse(about | {"choices": [choice]} | usage)

    begun = False
    async for event in running.events():
        if not begun:
            yield chunk({"role": "assistant", "content": ""})
            begun = True
        if isinstance(event, Delta):
            yield chunk({"content": event.text})
        elif isinstance(event, Finished):
            yield chunk({}, event.reason)
            if asked.usage:
                yield sse(about | {"choices": [], "usage": _usage(event)})
            yield DONE


def _usage(finished: Finished) -> dict[str, int]:
    read, made = finished.prompt_tokens, finished.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
