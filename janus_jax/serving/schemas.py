"""Requests to draw and to answer: a body of JSON in, a job and how it is to be answered out.

The fields are OpenAI's as far as Janus has what they mean, and some of its own. All others are refused.
"""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

import numpy as np

from janus_jax.processing.tokenizer import IMAGE
from janus_jax.serving.errors import ApiError
from janus_jax.serving.fields import SEEDS, Fields
from janus_jax.serving.jobs import ChatJob, DrawJob, Message
from janus_jax.serving.limits import Limits
from janus_jax.serving.pictures import picture_of_url

_CFG, _DRAWING_TEMPERATURE, _CHAT_TEMPERATURE = 100.0, 100.0, 2.0  # the last is OpenAI's


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What the protocol has to know of the model.

    Attributes:
      name: its id.
      width, height: of a picture that it draws, in pixels.
      input_size: side of a picture that it looks at, in pixels.
      created: when the server started, in seconds since 1970.
      rows: of codes of a picture that it draws.
      cfg_weight, temperature: its own of drawing.
    """

    name: str
    width: int
    height: int
    input_size: int
    created: int = 0
    rows: int = 1
    cfg_weight: float = 5.0
    temperature: float = 1.0

    @property
    def size(self) -> str:
        """`WxH` of a drawn picture."""
        return f"{self.width}x{self.height}"


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """A request to `/v1/images/generations`."""

    job: DrawJob
    stream: bool


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A request to `/v1/chat/completions`; `usage`: whether a stream ends with the number of tokens."""

    job: ChatJob
    stream: bool
    usage: bool


def draw_request(body: Any, card: ModelCard, limits: Limits) -> DrawRequest:
    """Raises ApiError for anything that is wrong, unknown or not supported."""
    fields = Fields(body)
    _check_model(fields, card)
    prompt = fields.text("prompt", limits.text, required=True)
    if not prompt.strip():
        raise fields.wrong("prompt", "is empty")
    size = fields.text("size", 100)
    if size not in (None, "auto", card.size):
        raise fields.wrong("size", f"must be {card.size}, which this model draws, or auto")
    _only(fields, "response_format", "b64_json", "there are no URLs of pictures here")
    _only(fields, "output_format", "png", "pictures are sent without loss")
    stream = fields.flag("stream")
    previews = fields.whole("partial_images", 0, limits.previews) or 0
    if previews and not stream:
        raise fields.wrong("partial_images", "needs stream: true")
    weight, alias = (fields.number(name, _CFG) for name in ("cfg_weight", "guidance_scale"))
    if weight is not None and alias is not None:
        raise fields.wrong("guidance_scale", "is another name of cfg_weight: give one of them")
    job = DrawJob(
        prompt=prompt,
        n=fields.whole("n", 1, limits.drawn) or 1,
        seed=_seed(fields),
        cfg_weight=alias if weight is None else weight,
        temperature=fields.number("temperature", _DRAWING_TEMPERATURE),
        top_k=fields.whole("top_k", 1, SEEDS),
        top_p=fields.number("top_p", 1.0, above_zero=True),
        previews=previews,
    )
    fields.end()
    return DrawRequest(job, stream)


def chat_request(body: Any, card: ModelCard, limits: Limits) -> ChatRequest:
    """Raises ApiError for anything that is wrong, unknown or not supported."""
    fields = Fields(body)
    _check_model(fields, card)
    given = fields.any("messages", required=True)
    stream = fields.flag("stream")
    usage = _stream_options(fields, stream)
    fields.whole("n", 1, 1)  # some clients send it always
    names = ("max_tokens", "max_completion_tokens")
    most, alias = (fields.whole(name, 1, limits.tokens) for name in names)
    if most is not None and alias is not None:
        raise fields.wrong(
            "max_completion_tokens", "is another name of max_tokens: give one of them"
        )
    temperature = fields.number("temperature", _CHAT_TEMPERATURE)
    top_p = fields.number("top_p", 1.0, above_zero=True)
    seed, stop = _seed(fields), _stop(fields, limits)
    fields.end()
    job = ChatJob(
        messages=_messages(given, card, limits),  # last: it decodes pictures
        max_tokens=most or alias or ChatJob.max_tokens,
        temperature=ChatJob.temperature if temperature is None else temperature,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )
    return ChatRequest(job, stream, usage)


def _check_model(fields: Fields, card: ModelCard) -> None:
    name = fields.text("model", 1000)
    if name not in (None, card.name):
        message = f"this server has the model {card.name} only; see /v1/models"
        raise ApiError(message, 404, param="model", code="model_not_found")


def _only(fields: Fields, name: str, word: str, why: str) -> None:
    if fields.text(name, 1000) not in (None, word):
        raise fields.wrong(name, f"must be {word}: {why}", "unsupported_value")


def _seed(fields: Fields) -> int:
    seed = fields.whole("seed", 0, SEEDS - 1)
    return secrets.randbelow(SEEDS) if seed is None else seed


def _stream_options(fields: Fields, stream: bool) -> bool:
    options = fields.any("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.wrong("stream_options", "needs stream: true")
    inner = Fields(options, "stream_options")
    usage = inner.flag("include_usage")
    inner.end()
    return usage


def _stop(fields: Fields, limits: Limits) -> tuple[str, ...]:
    given = fields.any("stop")
    texts = [] if given is None else given if isinstance(given, list) else [given]
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= 1000:
            raise fields.wrong("stop", "must be a text of 1 to 1000 letters, or a list of them")
    if len(texts) > limits.stops:
        raise fields.wrong("stop", f"has {len(texts)} texts, at most {limits.stops} are taken")
    return tuple(texts)


def _messages(given: Any, card: ModelCard, limits: Limits) -> tuple[Message, ...]:
    """The conversation: perhaps a system message, then user and assistant in turns, the user last."""
    if not isinstance(given, list) or not given:
        raise ApiError(
            "messages must be a list with at least one message",
            param="messages",
            code="invalid_type",
        )
    if len(given) > limits.messages:
        raise ApiError(
            f"messages has {len(given)} messages, at most {limits.messages} are taken",
            param="messages",
            code="invalid_value",
        )
    read = [Fields(value, f"messages[{i}]") for i, value in enumerate(given)]
    roles = [fields.choice("role", ("system", "user", "assistant"), True) for fields in read]
    offset = 1 if roles[0] == "system" else 0
    for i, role in enumerate(roles[offset:]):
        if role != ("user", "assistant")[i % 2]:
            raise read[i + offset].wrong(
                "role", "is out of order: user and assistant take turns, after a first system"
            )
    if roles[-1] != "user":
        raise read[-1].wrong("role", "must be user: the last message is the one to answer")
    contents = [_parts(fields, role, limits) for fields, role in zip(read, roles, strict=True)]
    letters = sum(len(part) for parts in contents for part in parts if isinstance(part, str))
    if letters > limits.text:
        raise ApiError(
            f"messages has {letters} letters, at most {limits.text} are taken",
            param="messages",
            code="too_long",
        )
    urls = sum(isinstance(part, _Url) for parts in contents for part in parts)
    if urls > limits.pictures:
        raise ApiError(
            f"messages has {urls} pictures, at most {limits.pictures} are taken",
            param="messages",
            code="too_many_pictures",
        )
    return tuple(
        _message(role, parts, card, limits) for role, parts in zip(roles, contents, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class _Url:
    """A picture that is not decoded yet, and the name of its field."""

    url: str
    param: str


def _parts(fields: Fields, role: str, limits: Limits) -> list[str | _Url]:
    """Texts and pictures of a message, in order."""
    content = fields.any("content", required=True)
    if role == "assistant" and fields.any("refusal") is not None:  # null in every answer of ours
        raise fields.wrong("refusal", "must be null", "unsupported_value")
    fields.end()
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
        _only(inner, "detail", "auto", "all pictures are seen at the size of the model")
        inner.end()
    fields.end()
    return part


def _message(role: str, parts: list[str | _Url], card: ModelCard, limits: Limits) -> Message:
    """Pictures that come first need no place in the text; otherwise each has one."""
    pictures: list[np.ndarray] = []
    for part in parts:
        if isinstance(part, _Url):
            pictures.append(picture_of_url(part.url, card.input_size, limits, part.param))
    first = all(isinstance(part, _Url) for part in parts[: len(pictures)])
    pieces = [part if isinstance(part, str) else IMAGE for part in parts]
    return Message(role, "\n".join(pieces[len(pictures) :] if first else pieces), tuple(pictures))
