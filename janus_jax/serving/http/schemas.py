"""Requests to draw and to answer: a body of JSON in, a job and how it is to be answered out.

The fields are OpenAI's as far as Janus has what they mean, and some of its own. Others are refused, but for values
that ask for what is done anyway (`accepted`).
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

from janus_jax.serving.http.accepted import take_chat_defaults, take_drawing_defaults
from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.fields import SEEDS, Fields
from janus_jax.serving.http.image_hosts import ImageHost
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.http.messages import read_messages
from janus_jax.serving.http.pictures import RemotePicture
from janus_jax.serving.jobs import ChatJob, DrawJob

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
    """A request to `/v1/chat/completions`.

    Attributes:
      job: what to do, once all pictures of `remote` are filled.
      stream: whether it is answered with events.
      usage: whether a stream ends with the number of tokens.
      remote: pictures of the job that are to be fetched.
    """

    job: ChatJob
    stream: bool
    usage: bool
    remote: tuple[RemotePicture, ...] = ()


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
    fields.only("response_format", ("b64_json",), "there are no URLs of pictures here")
    fields.only("output_format", ("png",), "pictures are sent without loss")
    take_drawing_defaults(fields)
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


def chat_request(
    body: Any, card: ModelCard, limits: Limits, hosts: Sequence[ImageHost] = ()
) -> ChatRequest:
    """Raises ApiError for anything that is wrong, unknown or not supported.

    Args:
      body: of the request.
      card: the model.
      limits: of the request.
      hosts: from which pictures may be fetched, which is left to the caller.
    """
    fields = Fields(body)
    _check_model(fields, card)
    given = fields.any("messages", required=True)
    stream = fields.flag("stream")
    usage = _stream_options(fields, stream)
    take_chat_defaults(fields)
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
    messages, remote = read_messages(
        given, card.input_size, limits, hosts
    )  # last: it decodes pictures
    job = ChatJob(
        messages=messages,
        max_tokens=most or alias or ChatJob.max_tokens,
        temperature=ChatJob.temperature if temperature is None else temperature,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )
    return ChatRequest(job, stream, usage, remote)


def _check_model(fields: Fields, card: ModelCard) -> None:
    name = fields.text("model", 1000)
    if name not in (None, card.name):
        message = f"this server has the model {card.name} only; see /v1/models"
        raise ApiError(message, 404, param="model", code="model_not_found")


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
    inner.only("include_obfuscation", (False,), "events are not padded")
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
