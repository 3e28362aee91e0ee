"""An engine without a model, an application on it, and what tests of the server send."""

import asyncio
import base64
import io
import threading
import time
from contextlib import contextmanager

import numpy as np
from PIL import Image

from janus_jax.serving import jobs
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.http.schemas import ModelCard

CARD = ModelCard("janus-test", width=32, height=32, input_size=16, created=1, rows=4)
DRAW, CHAT = "/v1/images/generations", "/v1/chat/completions"


class FakeEngine:
    """Does each job in a thread of its own: what `script(job)` yields is sent, an exception is raised by `submit`.

    Attributes:
      jobs, cancelled: what came, and what was cancelled before its end.
      go: jobs wait for it after each event.
    """

    def __init__(self, script=None):
        self.script = script or events_of
        self.jobs, self.cancelled, self.closed = [], [], None
        self.ready, self.failed = True, False
        self.go = threading.Event()
        self.go.set()

    def submit(self, job, on_event, deadline=None):
        events = self.script(job)
        if isinstance(events, Exception):
            raise events
        self.jobs.append(job)
        stop = threading.Event()

        def work():
            for event in events:
                on_event(event)
                while not self.go.wait(0.005) and not stop.is_set():
                    if deadline is not None and time.monotonic() > deadline:
                        on_event(jobs.Failed("deadline", "it took too long"))
                        return
                if stop.is_set():
                    self.cancelled.append(job)
                    on_event(jobs.Failed("cancelled", "the client has gone"))
                    return

        threading.Thread(target=work, daemon=True).start()
        return Ticket(stop)

    def stats(self):
        return {"draw": {"waiting": 2, "made": 7}, "chat": {"waiting": 0, "made": 1.5}}

    def close(self, drain=True):
        self.closed = drain


class Ticket:
    def __init__(self, stop):
        self.cancel = stop.set


def picture(shade, side=32):
    return np.full((side, side, 3), shade, np.uint8)


def events_of(job):
    """What an engine would answer: pictures whose shade is the seed plus their number; the question as an echo."""
    if isinstance(job, jobs.DrawJob):
        for step in range(job.previews):
            for i in range(job.n):
                yield jobs.Preview(i, picture(255), 10 * step, 100)
        for i in reversed(range(job.n)):
            yield jobs.Picture(i, picture((job.seed + i) % 256))
        yield jobs.Finished("stop", 5, 100 * job.n)
        return
    for word in ("You ", "said: ", job.messages[-1].text):
        yield jobs.Delta(word)
    yield jobs.Finished("length" if job.max_tokens == 1 else "stop", 11, 3)


def app_of(engine, **options):
    from janus_jax.serving.http.app import create_app

    limits = Limits(**options.pop("limits", {}))
    return create_app(engine, CARD, limits, **options)


@contextmanager
def client_of(engine=None, **options):
    """Starlette's client of an application; what the server does not catch is an answer, too."""
    from starlette.testclient import TestClient

    app = app_of(engine or FakeEngine(), **options)
    with TestClient(app, "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@contextmanager
def server_of(app):
    """The address of a real server in a thread."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", log_config=None, lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def file_of(shade=9, side=20, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(picture(shade, side)).save(file, kind)
    return file.getvalue()


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def asking(*parts):
    """The body of a question."""
    return {"messages": [{"role": "user", "content": list(parts)}]}


def text_part(text="what is it?"):
    return {"type": "text", "text": text}


def call(app, messages, path=CHAT, on_send=lambda message: None):
    """(messages that were sent, a task): the application on a connection that brings `messages`, then nothing."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "http_version": "1.1",
    }
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope |= {"headers": headers, "scheme": "http", "server": ("localhost", 80), "client": None}
    sent = []

    async def receive():
        return await messages.get()

    async def send(message):
        sent.append(message)
        on_send(message)

    return sent, asyncio.create_task(app(scope | {"asgi": {}}, receive, send))


def part(body=b"", more=False):
    return {"type": "http.request", "body": body, "more_body": more}
