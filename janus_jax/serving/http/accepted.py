"""OpenAI's fields that have no meaning here, with the values that clients may send all the same.

Many clients fill in OpenAI's defaults, or name the user. A value that asks for what is done anyway is taken. One
that would change the answer is refused: the answer would not be what was asked for.
"""

from __future__ import annotations

from typing import Any

from janus_jax.serving.http.fields import Fields

# field -> (values that are taken, why there are no others)
_DRAWING: dict[str, tuple[tuple[Any, ...], str]] = {
    "quality": (("auto", "standard"), "the model has one quality"),
    "style": (("vivid",), "describe the style in the prompt"),  # what OpenAI does if not told
    "background": (("auto", "opaque"), "pictures have no transparency"),
    "moderation": (("auto", "low"), "prompts are not moderated"),
}
_CHAT: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "a request has one answer"),
    "frequency_penalty": ((0,), "tokens are not penalized"),
    "presence_penalty": ((0,), "tokens are not penalized"),
    "logit_bias": (({},), "tokens have no bias"),
    "logprobs": ((False,), "probabilities of tokens are not sent"),
    "top_logprobs": ((0,), "probabilities of tokens are not sent"),
    "response_format": (({"type": "text"},), "answers are text that is held to no form"),
    "modalities": ((["text"],), "answers are text; /v1/images/generations draws"),
    "store": ((False,), "answers are not kept"),
}
# Names of who asks, and of what belongs together on OpenAI's side.
_LABELS = ("user", "safety_identifier", "prompt_cache_key")
_LONGEST_LABEL = 1000  # letters


def take_drawing_defaults(fields: Fields) -> None:
    """Takes what has no effect on a drawing. Raises ApiError for a value that would have one."""
    _take(fields, _DRAWING)


def take_chat_defaults(fields: Fields) -> None:
    """Takes what has no effect on an answer. Raises ApiError for a value that would have one."""
    _take(fields, _CHAT)
    fields.only("service_tier", ("auto", "default"), "all requests wait in one queue")
    metadata = fields.any("metadata")
    if metadata is not None:
        Fields(metadata, "metadata")  # an object of anything
    _take_tools(fields)


def _take_tools(fields: Fields) -> None:
    """Tools may be described where none is to be called."""
    fields.flag("parallel_tool_calls")
    why = "this model calls no tools"
    if fields.only("tool_choice", ("none", "auto"), why) == "none":
        fields.any("tools")
    else:
        fields.only("tools", ([],), why)


def _take(fields: Fields, table: dict[str, tuple[tuple[Any, ...], str]]) -> None:
    for field, (values, why) in table.items():
        fields.only(field, values, why)
    for label in _LABELS:
        fields.text(label, _LONGEST_LABEL)
