"""The application: routes, who may use them, and errors in one form."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from janus_jax.errors import UserError
from janus_jax.serving.http.chat_api import complete_chat
from janus_jax.serving.http.context import Context
from janus_jax.serving.http.errors import ApiError, of_exception
from janus_jax.serving.http.fetching import Fetcher
from janus_jax.serving.http.images_api import generate_images
from janus_jax.serving.http.limits import BodyLimit, Limits
from janus_jax.serving.http.metrics import CountRequests, Metrics
from janus_jax.serving.http.running import in_thread
from janus_jax.serving.http.schemas import ModelCard
from janus_jax.serving.http.security import PAGE, ApiKey, LocalHost, SameSite
from janus_jax.serving.jobs import Engine, QueueFull
from janus_jax.serving.page.mounting import mount_page
from janus_jax.untrusted import shown

log = logging.getLogger(__name__)

CLOSING = 30.0  # seconds for the engine's last block, once all requests are answered
THREADS = 2  # that decode pictures; each may hold one of 25 megapixels
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Endpoint = Callable[[Request, Context], Awaitable[Response]]


def create_app(
    engine: Engine,
    card: ModelCard,
    limits: Limits | None = None,
    key: str | None = None,
    local_only: bool = True,
    fetcher: Fetcher | None = None,
    page: bool = False,
) -> Starlette:
    """An ASGI application.

    Its `state.stop_idle()`, called in the event loop when a server begins to stop, ends connections of
    browsers that wait for nothing.

    Args:
      engine: does the work; it is closed, after what is running, when the application shuts down.
      card: the model.
      limits: of requests.
      key: that every route but /health wants; None lets in anybody who reaches it.
      local_only: without a key, refuse requests for another host than localhost.
      fetcher: of pictures by URL; None fetches nothing. It is closed with the engine.
      page: with the page for browsers, which needs Gradio.
    """
    limits = limits or Limits()
    pool = ThreadPoolExecutor(THREADS, "requests")
    context = Context(engine, card, limits, pool, fetcher or Fetcher((), limits))
    routes: list[tuple[str, str, Endpoint]] = [
        ("/health", "GET", _health),
        ("/ready", "GET", _ready),
        ("/v1/models", "GET", _models),
        ("/v1/models/{model:path}", "GET", _model),
        ("/v1/chat/completions", "POST", complete_chat),
        ("/v1/images/generations", "POST", generate_images),
    ]
    metrics = Metrics(engine, frozenset({path for path, *_ in routes} | {"/metrics"}))

    async def show_metrics(request: Request, context: Context) -> Response:
        return Response(await in_thread(context.pool, metrics.text), media_type=_METRICS_TYPE)

    routes.append(("/metrics", "GET", show_metrics))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await _close(engine, context.pool)
            context.fetcher.close()
            context.pool.shutdown(wait=False)

    # Only what sees every message itself: Starlette's BaseHTTPMiddleware hides that a client has gone.
    middleware = [Middleware(CountRequests, metrics=metrics)]
    if key is not None:
        middleware.append(Middleware(ApiKey, key=key))
    elif local_only:
        middleware.append(Middleware(LocalHost))
    middleware.append(Middleware(SameSite))
    middleware.append(Middleware(BodyLimit, limits=context.limits))
    handlers = {kind: _answer_error for kind in (ApiError, QueueFull, UserError, Exception)}
    app = Starlette(
        routes=[
            Route(path, _with(context, endpoint), methods=[method])
            for path, method, endpoint in routes
        ],
        middleware=middleware,
        exception_handlers={**handlers, HTTPException: _answer_http_error},
        lifespan=lifespan,
    )
    app.state.stop_idle = lambda: None
    if page:
        app.state.stop_idle = mount_page(app, context).close
        app.routes.extend(Route(path, _to_page, methods=["GET"]) for path in ("/", PAGE))
    return app


async def _close(engine: Engine, pool: ThreadPoolExecutor) -> None:
    """Closes the engine, after what is left; one that is stuck on its device does not keep the process."""
    closing = threading.Thread(target=engine.close, name="closing", daemon=True)
    closing.start()
    await in_thread(pool, closing.join, CLOSING)
    if closing.is_alive():
        log.error("the engine does not end: it is left behind")


def _with(context: Context, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    @functools.wraps(endpoint)
    async def call(request: Request) -> Response:
        return await endpoint(request, context)

    return call


async def _to_page(request: Request) -> Response:
    return RedirectResponse(f"{PAGE}/")


async def _health(request: Request, context: Context) -> Response:
    """The process lives, and so does what computes; see `_ready` for more."""
    _check_alive(context)
    return JSONResponse({"status": "ok"})


def _check_alive(context: Context) -> None:
    if context.engine.failed:
        what = "the engine has stopped by a fault; the log of the server says more"
        raise ApiError(what, 503, code="engine_stopped")


async def _ready(request: Request, context: Context) -> Response:
    _check_alive(context)
    if not context.engine.ready:
        raise ApiError("programs are being compiled", 503, code="not_ready")
    return JSONResponse({"status": "ready"})


def _about(card: ModelCard) -> dict:
    return {"id": card.name, "object": "model", "created": card.created, "owned_by": "janus_jax"}


async def _models(request: Request, context: Context) -> Response:
    return JSONResponse({"object": "list", "data": [_about(context.card)]})


async def _model(request: Request, context: Context) -> Response:
    name = request.path_params["model"]
    if name != context.card.name:
        message = f"there is no model {shown(name)} here, but {context.card.name}"
        raise ApiError(message, 404, param="model", code="model_not_found")
    return JSONResponse(_about(context.card))


async def _answer_error(request: Request, error: Exception) -> Response:
    known = of_exception(error)
    return JSONResponse(known.body(), known.status, known.headers)


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    """No such path, or another method."""
    what = {404: "there is no", 405: "this method is not for"}.get(error.status_code)
    message = f"{what} {shown(request.url.path)}" if what else str(error.detail)
    known = ApiError(message, error.status_code, code="not_found", headers=error.headers)
    return JSONResponse(known.body(), known.status, known.headers)
