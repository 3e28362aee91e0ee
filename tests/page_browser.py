"""A browser without a window for the tests of the page, and an engine whose pictures grow step by step."""

import contextlib
import shutil
import threading

import numpy as np
from dummies_serving import FakeEngine, app_of, server_of

from janus_jax.serving import jobs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WORDS = ("I ", "see ", "a ", "tree.")


class SlowEngine(FakeEngine):
    """Sends an event whenever `step` is called, or all at once after `finish`."""

    def __init__(self, script=None):
        super().__init__(script or growing)
        self.go = threading.Semaphore(0)
        self._wait = self.go.acquire
        self.go.wait = lambda seconds: self._wait(timeout=seconds)

    def step(self, events=1):
        self.go.release(events)

    def hold(self):
        """Back to single steps after `finish`."""
        while self._wait(blocking=False):
            pass

    def finish(self):
        self.step(10**4)


def growing(job):
    """Previews with more and more rows that are not white, then the picture; or some words."""
    if isinstance(job, jobs.ChatJob):
        yield from (jobs.Delta(word) for word in WORDS)
        yield jobs.Finished("stop", 5, len(WORDS))
        return
    yield jobs.Preview(0, np.full((32, 32, 3), 255, np.uint8), 0, 16)
    for done in (4, 8, 12):
        picture = np.full((32, 32, 3), 255, np.uint8)
        picture[: 2 * done] = job.seed % 200
        yield from (jobs.Preview(i, picture, done, 16) for i in range(job.n))
    for i in range(job.n):
        yield jobs.Picture(i, np.full((32, 32, 3), job.seed % 200, np.uint8))
    yield jobs.Finished("stop", 5, 16 * job.n)


@contextlib.contextmanager
def browser():
    """Chromium, without what would ask other servers."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


@contextlib.contextmanager
def serving(engine, **options):
    """The address of the page."""
    app = app_of(engine, page=True, **options)
    with server_of(app) as (host, port):
        yield f"http://{host}:{port}/ui/"


@contextlib.contextmanager
def opened(chromium, address, size=(1280, 800), **options):
    """The page in a window of its own; `page.outside` is what was asked of other servers."""
    width, height = size
    context = chromium.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.outside, page.faults = [], []
    local = address.split("/ui")[0]

    def seen(request):
        if not request.url.startswith((local, "data:", "blob:")):
            page.outside.append(request.url)

    page.on("request", seen)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    page.locator("#prompt textarea").wait_for()
    try:
        yield page
    finally:
        context.close()
