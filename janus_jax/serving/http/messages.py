"""The conversation of a request: messages of OpenAI's form in, those of a job out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.processing.tokenizer import IMAGE
from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.fields import Fields
from janus_jax.serving.http.image_hosts import ImageHost
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.http.pictures import RemotePicture, picture_of_url, remote_picture
from janus_jax.serving.jobs import Message

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class _Url:
    """A picture that is not decoded yet, and the name of its field."""

    url: str
    param: str


@dataclasses.dataclass(frozen=True)
class _Turn:
    """What one role says, perhaps in several messages; `fields`: of the first of them, for errors."""

    role: str
    parts: list[str | _Url]
    fields: Fields


def read_messages(
    given: Any, input_size: int, limits: Limits, hosts: Sequence[ImageHost] = ()
) -> tuple[tuple[Message, ...], tuple[RemotePicture, ...]]:
    """Perhaps a system message, then user and assistant in turns, the user last.

    Messages of one role that follow each other become one, with a line break between. An assistant's message
    without text is left out: a client sends it back where an answer was empty or failed.

    Args:
      given: the value of `messages`.
      input_size: side of a picture as the model sees it, in pixels.
      limits: of numbers and sizes.
      hosts: from which pictures may be fetched, which is left to the caller.

    Returns:
      the messages, and those of their pictures that are to be fetched.

    Raises:
      ApiError: for anything that is wrong, unknown or not supported.
    """
    if not isinstance(given, list) or not given:
        raise _wrong("must be a list with at least one message", "invalid_type")
    if len(given) > limits.messages:
        raise _wrong(f"has {len(given)} messages, at most {limits.messages} are taken")
    turns = _turns([Fields(value, f"messages[{i}]") for i, value in enumerate(given)])
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    if (letters := sum(map(len, texts))) > limits.text:
        raise _wrong(f"has {letters} letters, at most {limits.text} are taken", "too_long")
    urls = sum(isinstance(part, _Url) for turn in turns for part in turn.parts)
    if urls > limits.pictures:
        what = f"has {urls} pictures, at most {limits.pictures} are taken"
        raise _wrong(what, "too_many_pictures")
    # All URLs are read before any picture is decoded.
    remote = {
        part.param: picture
        for turn in turns
        for part in turn.parts
        if isinstance(part, _Url)
        and (picture := remote_picture(part.url, hosts, input_size, part.param))
    }
    messages = tuple(_message(turn, input_size, limits, remote) for turn in turns)
    return messages, tuple(remote.values())


def _wrong(what: str, code: str = "invalid_value") -> ApiError:
    return ApiError(f"messages {what}", param="messages", code=code)


def _turns(messages: list[Fields]) -> list[_Turn]:
    """The messages, in an order that the model knows."""
    names: dict[str, str] = {}  # of the role
    read = []
    for fields in messages:
        role = _ROLES[fields.choice("role", _ROLES, required=True)]
        name = fields.text("name", 1000)
        if name is not None and names.setdefault(role, name) != name:
            why = "is another than before, but the model does not tell apart who speaks in one role"
            raise fields.wrong("name", why, "unsupported_value")
        parts = _parts(fields, role)
        if parts:
            read.append(_Turn(role, parts, fields))
    turns = []
    for role, group in itertools.groupby(read, key=lambda turn: turn.role):
        said = list(group)
        parts = list(itertools.chain.from_iterable(turn.parts for turn in said))
        turns.append(_Turn(role, parts, said[0].fields))
    offset = 1 if turns and turns[0].role == "system" else 0
    for i, turn in enumerate(turns[offset:]):
        if turn.role != ("user", "assistant")[i % 2]:
            raise turn.fields.wrong(
                "role", "is out of order: user and assistant take turns, after a first system"
            )
    if not turns or turns[-1].role != "user":
        what = "must be user: the last message is the one to answer"
        raise (turns[-1].fields if turns else messages[-1]).wrong("role", what)
    return turns


def _parts(fields: Fields, role: str) -> list[str | _Url]:
    """Texts and pictures of a message, in order; none only where an assistant said nothing."""
    content = fields.any("content", required=role != "assistant")
    if role == "assistant":
        # Clients send back what answers of OpenAI have: empty, or null, where there was nothing of it.
        fields.only("tool_calls", ([],), "this model calls no tools")
        fields.only("annotations", ([],), "this model cites nothing")
    fields.end()
    if content is None:
        return []
    if isinstance(content, list):
        parts = [
            _part(Fields(value, f"{fields.name('content')}[{i}]"), role)
            for i, value in enumerate(content)
        ]
    elif isinstance(content, str):
        parts = [fields.as_text("content", content, 10**9)]
    else:
        raise fields.wrong("content", "must be a text or a list of parts", "invalid_type")
    texts = [part for part in parts if isinstance(part, str)]
    if not any(text.strip() for text in texts):
        if role == "assistant":
            return []
        raise fields.wrong("content", "has no text")
    if role == "user" and any(IMAGE in text for text in texts):
        raise fields.wrong("content", f"has {IMAGE}: pictures are parts of type image_url")
    return parts


def _part(fields: Fields, role: str) -> str | _Url:
    kinds = ("text", "image_url") if role == "user" else ("text",)
    if fields.choice("type", kinds, required=True) == "text":
        part = fields.text("text", 10**9, required=True)
    else:
        inner = Fields(fields.any("image_url", required=True), fields.name("image_url"))
        part = _Url(inner.text("url", 10**9, required=True), inner.name("url"))
        inner.only("detail", ("auto",), "all pictures are seen at the size of the model")
        inner.end()
    fields.end()
    return part


def _message(
    turn: _Turn, input_size: int, limits: Limits, remote: Mapping[str, RemotePicture]
) -> Message:
    """Pictures that come first need no place in the text; otherwise each has one."""
    pictures: list[np.ndarray] = []
    for part in turn.parts:
        if not isinstance(part, _Url):
            continue
        if part.param in remote:
            pictures.append(remote[part.param].pixels)
        else:
            pictures.append(picture_of_url(part.url, input_size, limits, part.param))
    first = all(isinstance(part, _Url) for part in turn.parts[: len(pictures)])
    pieces = [part if isinstance(part, str) else IMAGE for part in turn.parts]
    return Message(
        turn.role, "\n".join(pieces[len(pictures) :] if first else pieces), tuple(pictures)
    )
