"""Conversations as the page sees them: a question in, views out, each with more of the answer."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from janus_jax.serving.http.context import Context
from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.pictures import picture_of_file, png_bytes
from janus_jax.serving.http.running import in_thread
from janus_jax.serving.http.schemas import chat_request
from janus_jax.serving.jobs import Delta, Event, Finished
from janus_jax.serving.page.files import PictureFiles, harmless
from janus_jax.serving.page.following import Following, Waiting, was_stopped
from janus_jax.serving.page.sessions import Visit
from janus_jax.untrusted import printable


@dataclasses.dataclass(frozen=True)
class Attached:
    """A picture of a conversation, as the model sees it.

    Attributes:
      file: path of a PNG, for the browser.
      url: the same as a `data:` URL, which is there as long as the conversation.
    """

    file: str
    url: str


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question with its pictures, and its answer as far as it is."""

    question: str
    pictures: tuple[Attached, ...] = ()
    answer: str = ""


Conversation = tuple[Turn, ...]


@dataclasses.dataclass(frozen=True)
class ChatView:
    """What is shown.

    Attributes:
      turns: the conversation; that of the last view is the one to go on with.
      line: how far it is, or what went wrong.
      running: more views follow.
      failed: the line is an error.
      refused: the question is not in the conversation, and should be where it can be asked again.
    """

    turns: Conversation
    line: str = ""
    running: bool = False
    failed: bool = False
    refused: bool = False


async def ask(
    turns: Conversation,
    question: str,
    paths: Sequence[str],
    settings: Mapping[str, Any],
    visit: Visit,
    context: Context,
    files: PictureFiles,
) -> AsyncGenerator[ChatView, None]:
    """Views of an answer, the last of which is not `running`. To close it cancels the answer.

    Args:
      turns: before.
      question: text.
      paths: of uploaded pictures, which have to be in `files`.
      settings: fields of a request, such as "temperature"; those that are None are not given.
      visit: whose end cancels the answer.
      context: of the application.
      files: keeps what the browser is shown.
    """
    try:
        if not question.strip():
            what = "write a question about the picture" if paths else "write a question first"
            raise ApiError(what)
        if len(paths) > context.limits.pictures:
            most = context.limits.pictures
            raise ApiError(f"there are {len(paths)} pictures, at most {most} are taken")
        pictures = [await in_thread(context.pool, attach, path, context, files) for path in paths]
    except ApiError as error:
        yield ChatView(turns, error.message, failed=True, refused=True)
        return
    turn = Turn(question, tuple(pictures))
    async for view in _answers(turns, turn, turns, settings, visit, context):
        yield view


async def ask_again(
    turns: Conversation, settings: Mapping[str, Any], visit: Visit, context: Context
) -> AsyncGenerator[ChatView, None]:
    """Another answer to the last question; see `ask`."""
    if not turns:
        yield ChatView(turns, "there is no question yet", failed=True)
        return
    last = dataclasses.replace(turns[-1], answer="")
    async for view in _answers(turns[:-1], last, turns, settings, visit, context):
        yield dataclasses.replace(view, refused=False)


async def _answers(
    before: Conversation,
    turn: Turn,
    otherwise: Conversation,
    settings: Mapping[str, Any],
    visit: Visit,
    context: Context,
) -> AsyncGenerator[ChatView, None]:
    """`otherwise` is what the conversation stays if there is no answer at all."""
    try:
        body = body_of((*before, turn), settings)
        asked = await in_thread(context.pool, chat_request, body, context.card, context.limits)
    except ApiError as error:
        yield ChatView(otherwise, error.message, failed=True, refused=True)
        return
    waiting, growing = Waiting(context, "chat"), _Growing(turn)
    async with Following(context, asked.job, visit, growing.take) as following:
        while not following.ended:
            line = "Answering" if growing.pieces else waiting.line(following.taken)
            yield ChatView((*before, growing.turn), line, running=True)
            await following.news()
    failure = following.failure
    if failure is None:
        cut = "The answer was cut: it reached its longest length." if growing.cut else ""
        line = cut or ("" if growing.turn.answer.strip() else "The model has no answer.")
        yield ChatView((*before, growing.turn), line)
        return
    failed = not was_stopped(failure)
    line = failure.message if failed else "Stopped."
    if growing.turn.answer:
        yield ChatView((*before, growing.turn), line, failed=failed)
    else:
        yield ChatView(otherwise, line, failed=failed, refused=True)


class _Growing:
    """An answer as far as it is."""

    def __init__(self, turn: Turn):
        self._turn = turn
        self.pieces: list[str] = []
        self.cut = False

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.pieces.append(event.text)
        elif isinstance(event, Finished):
            self.cut = event.reason == "length"

    @property
    def turn(self) -> Turn:
        return dataclasses.replace(self._turn, answer="".join(self.pieces))


def attach(path: str, context: Context, files: PictureFiles) -> Attached:
    """An uploaded picture at the size of the model, within the limits of the API.

    Raises:
      ApiError: the file is not among `files`, is too large, or is no picture.
    """
    name, limits = printable(os.path.basename(path), 60), context.limits
    if not files.is_there(path):
        raise ApiError(f"{name} is not there any more: add it again")
    with open(path, "rb") as file:
        data = file.read(limits.picture_bytes + 1)
    picture = picture_of_file(data, context.card.input_size, limits, name)
    png = png_bytes(picture)
    url = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    return Attached(files.save(png, harmless(os.path.splitext(name)[0])), url)


def body_of(turns: Conversation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The request of the API that asks the last question. Turns without an answer before it are left out."""
    messages = []
    for turn in (*(turn for turn in turns[:-1] if turn.answer.strip()), turns[-1]):
        parts = [{"type": "image_url", "image_url": {"url": p.url}} for p in turn.pictures]
        content = [*parts, {"type": "text", "text": turn.question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": turn.answer})
    given = {name: value for name, value in settings.items() if value is not None}
    return {"messages": messages[:-1], **given}
