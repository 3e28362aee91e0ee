"""`POST /v1/images/generations`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from janus_jax.serving.http.context import Context, read_json
from janus_jax.serving.http.pictures import png_base64
from janus_jax.serving.http.running import Running, collect, in_thread
from janus_jax.serving.http.schemas import DrawRequest, draw_request
from janus_jax.serving.http.sse import sse, stream
from janus_jax.serving.jobs import Finished, Picture, Preview

_COMPLETED, _PARTIAL = "image_generation.completed", "image_generation.partial_image"


async def generate_images(request: Request, context: Context) -> Response:
    """Draws, and answers at once or with events."""
    asked = draw_request(await read_json(request, context), context.card, context.limits)
    running = context.run(asked.job, request)
    if asked.stream:
        return await stream(running, _chunks(running, asked, context))
    async with running:
        events = await collect(running)
    pictures = sorted((e for e in events if isinstance(e, Picture)), key=lambda e: e.index)
    data = [{"b64_json": await in_thread(context.pool, png_base64, e.picture)} for e in pictures]
    answer = {"created": int(time.time()), "data": data, "seed": asked.job.seed}
    return JSONResponse(answer | _form(context) | {"usage": _usage(events[-1])})


async def _chunks(
    running: Running, asked: DrawRequest, context: Context
) -> AsyncGenerator[bytes, None]:
    """Previews as they come. A finished picture waits for the end: its event has the number of tokens."""
    common = {"created_at": int(time.time()), "quality": "auto", "seed": asked.job.seed}
    common |= _form(context)
    shown = [0] * asked.job.n  # previews of each picture
    finished = []
    async for event in running.events():
        if isinstance(event, Preview):
            number, shown[event.index] = shown[event.index], shown[event.index] + 1
            about = {"partial_image_index": number, "done": event.done, "total": event.total}
            yield await _event(_PARTIAL, event, common | about, context)
        elif isinstance(event, Picture):
            finished.append(event)
        elif isinstance(event, Finished):
            about = common | {"usage": _usage(event)}
            for picture in sorted(finished, key=lambda picture: picture.index):
                yield await _event(_COMPLETED, picture, about, context)


async def _event(kind: str, event: Preview | Picture, about: dict, context: Context) -> bytes:
    """`image_index` is not OpenAI's: it tells the pictures of one request apart."""
    encoded = await in_thread(context.pool, png_base64, event.picture)
    return sse({"type": kind, "b64_json": encoded, "image_index": event.index, **about}, kind)


def _form(context: Context) -> dict[str, str]:
    return {"size": context.card.size, "output_format": "png", "background": "opaque"}


def _usage(finished: Finished) -> dict[str, Any]:
    made, read = finished.completion_tokens, finished.prompt_tokens
    return {
        "input_tokens": read,
        "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
        "output_tokens": made,
        "total_tokens": read + made,
    }
