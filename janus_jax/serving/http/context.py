"""What all endpoints share: the engine, the model's facts, limits, threads."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request

from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.fetching import Fetcher
from janus_jax.serving.http.fields import parse_json
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.http.running import SMALL, Connection, Running, in_thread
from janus_jax.serving.http.schemas import ModelCard
from janus_jax.serving.jobs import Engine, Job


@dataclasses.dataclass(frozen=True)
class Context:
    """Of one application.

    Attributes:
      engine: does the jobs.
      card: the model.
      limits: of requests.
      pool: a few threads for pictures and long texts, beside the event loop. They also bound how many pictures are
        decoded at the same time.
      fetcher: gets pictures from other hosts, if there are any that it may ask.
    """

    engine: Engine
    card: ModelCard
    limits: Limits
    pool: ThreadPoolExecutor
    fetcher: Fetcher

    def run(self, job: Job, client: Connection) -> Running:
        """A job that is not handed in yet; see `Running`."""
        return Running(self.engine, job, client, self.limits.seconds, self.pool)


async def read_json(request: Request, context: Context) -> Any:
    """The body of a request.

    Raises:
      ApiError: it is compressed, or not declared as JSON, which also keeps out what a form on a web page can send.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        what = "send the body without compression (Content-Encoding)"
        raise ApiError(what, 415, code="unsupported_media_type")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            "send JSON, with the header Content-Type: application/json",
            415,
            code="unsupported_media_type",
        )
    body = await request.body()
    return (
        parse_json(body) if len(body) <= SMALL else await in_thread(context.pool, parse_json, body)
    )
