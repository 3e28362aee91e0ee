"""`/metrics`: what the engine counts and how requests ended, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_jax.serving.http.security import PAGE, is_of_page
from janus_jax.serving.jobs import Engine

_NOW = ("waiting", "running")  # what the engine does not only count up
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)


class _OfEngine:
    """`Engine.stats()` as it is when somebody asks: kind of job -> name -> number."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("janus_ready", "1 when all programs are compiled")
        ready.add_metric([], float(self._engine.ready))
        yield ready
        stats = self._engine.stats()
        for name in sorted({name for numbers in stats.values() for name in numbers}):
            make = GaugeMetricFamily if name in _NOW else CounterMetricFamily
            metric = make(f"janus_engine_{name}", f"{name} of the engine", labels=["kind"])
            for kind, numbers in stats.items():
                if name in numbers:
                    metric.add_metric([kind], float(numbers[name]))
            yield metric


class Metrics:
    """The numbers of one application.

    Args:
      engine: whose numbers are among them.
      paths: those that are told apart; of the page there is only one, and others are "other", as anybody can make
        them up.
    """

    def __init__(self, engine: Engine, paths: frozenset[str]):
        self._paths = paths
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(engine))
        names = ["path", "status"]
        self._requests = Counter(
            "janus_http_requests", "Requests that were answered", names, registry=self._registry
        )
        self._seconds = Histogram(
            "janus_http_seconds",
            "Seconds from a request to the end of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)

    def add(self, path: str, status: int, seconds: float) -> None:
        """One request that has ended."""
        if path not in self._paths:
            path = PAGE if is_of_page(path) else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)


class CountRequests:
    """Counts what passes."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # nothing was sent: the client has gone
        start = time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500  # which is sent outside of this
            raise
        finally:
            self._metrics.add(scope["path"], status, time.monotonic() - start)
