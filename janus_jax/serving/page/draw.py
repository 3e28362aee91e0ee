"""Drawing as the page sees it: a form in, views out, each with pictures that have grown."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.serving.http.context import Context
from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.pictures import png_base64, png_bytes
from janus_jax.serving.http.running import in_thread
from janus_jax.serving.http.schemas import draw_request
from janus_jax.serving.jobs import DrawJob, Event, Picture, Preview
from janus_jax.serving.page.files import PictureFiles, harmless
from janus_jax.serving.page.following import Following, Waiting, was_stopped
from janus_jax.serving.page.sessions import Visit

_SHARP = 2**16  # values of a picture that is sent without loss while it grows


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A finished picture.

    Attributes:
      file: path of a PNG.
      prompt, seed, index: what it was made of: picture `index` of its request.
    """

    file: str
    prompt: str
    seed: int
    index: int

    @property
    def caption(self) -> str:
        number = f", picture {self.index + 1}" if self.index else ""
        return f"{self.prompt} (seed {self.seed}{number})"


@dataclasses.dataclass(frozen=True)
class Card:
    """The place of a picture.

    Attributes:
      source: a `data:` URL of how far it is, "" before anything is seen.
      done: share of it, 0 to 1.
      drawn: once it is finished.
    """

    source: str = ""
    done: float = 0.0
    drawn: Drawn | None = None


@dataclasses.dataclass(frozen=True)
class DrawView:
    """What is shown.

    Attributes:
      line: how far it is, or what went wrong.
      cards: of all pictures.
      seed: that is used; None where there is no drawing.
      running: more views follow.
      failed: the line is an error.
    """

    line: str
    cards: tuple[Card, ...] = ()
    seed: int | None = None
    running: bool = False
    failed: bool = False

    @property
    def drawn(self) -> tuple[Drawn, ...]:
        """The finished pictures."""
        return tuple(card.drawn for card in self.cards if card.drawn is not None)


async def draw(
    form: Mapping[str, Any], visit: Visit, context: Context, files: PictureFiles
) -> AsyncGenerator[DrawView, None]:
    """Views of a drawing, the last of which is not `running`. To close it cancels the drawing.

    Args:
      form: fields of a request to draw; those that are None are not given.
      visit: whose end cancels the drawing.
      context: of the application.
      files: keeps the finished pictures.
    """
    try:
        given = {name: value for name, value in form.items() if value is not None}
        job = draw_request(given, context.card, context.limits).job
    except ApiError as error:
        yield DrawView(error.message, failed=True)
        return
    job = dataclasses.replace(job, previews=context.card.rows - 1)
    waiting, growing = Waiting(context, "draw"), _Growing(job, context, files)
    async with Following(context, job, visit, growing.take) as following:
        while not following.ended:
            yield await growing.view(growing.line() or waiting.line(following.taken))
            await following.news()
    failure = following.failure
    if failure is None:
        yield await growing.view(growing.summary(), running=False)
    elif was_stopped(failure):
        yield await growing.view("Stopped.", running=False)
    else:
        view = await growing.view(failure.message, running=False)
        yield dataclasses.replace(view, failed=True)


def number_of(text: str | None) -> int | float | str | None:
    """What somebody has typed into a field for a number; what is none stays a text, which requests refuse."""
    text = (text or "").strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


class _Growing:
    """The pictures of a job as far as they are."""

    def __init__(self, job: DrawJob, context: Context, files: PictureFiles):
        self._job, self._context, self._files = job, context, files
        self._began = time.monotonic()
        self._newest: dict[int, Preview | Picture] = {}
        self._cards = [Card() for _ in range(job.n)]
        self._shown: list[Event | None] = [None] * job.n  # what the card was made of
        self._total = 0  # codes of a picture

    def take(self, event: Event) -> None:
        if isinstance(event, Preview | Picture):
            self._newest[event.index] = event
        if isinstance(event, Preview):
            self._total = event.total

    def line(self) -> str:
        """How far it is, "" before anything is seen."""
        if not self._newest:
            return ""
        n, events = self._job.n, self._newest.values()
        finished = sum(isinstance(event, Picture) for event in events)
        codes = finished * self._total + sum(e.done for e in events if isinstance(e, Preview))
        parts = [f"{finished} of {n} pictures"] if n > 1 else []
        if self._total:
            parts.append(f"{codes} of {n * self._total} codes")
        return ", ".join(parts)

    def summary(self) -> str:
        seconds = time.monotonic() - self._began
        what = "1 picture" if self._job.n == 1 else f"{self._job.n} pictures"
        return f"{what} in {seconds:.1f} s"

    async def view(self, line: str, running: bool = True) -> DrawView:
        for index, event in list(self._newest.items()):
            if event is not self._shown[index]:
                self._cards[index] = await in_thread(self._context.pool, self._card, event)
                self._shown[index] = event
        return DrawView(line, tuple(self._cards), self._job.seed, running)

    def _card(self, event: Preview | Picture) -> Card:
        if isinstance(event, Preview):
            return Card(_data_url(event.picture), event.done / event.total)
        job = self._job
        name = f"{harmless(job.prompt)}_seed{job.seed}_{event.index}"
        path = self._files.save(png_bytes(event.picture), name)
        return Card("", 1.0, Drawn(path, job.prompt, job.seed, event.index))


def _data_url(picture: np.ndarray) -> str:
    """Of an unfinished picture; a large one with loss, as there are many of them."""
    if picture.size <= _SHARP:
        return f"data:image/png;base64,{png_base64(picture)}"
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
