"""Conversations as OpenAI, Anthropic, ShareGPT, ms-swift and LLaMA-Factory write them.

Sources: ms-swift, docs/source_en/Customization/Custom-dataset.md; LLaMA-Factory, data/README.md; OpenAI's and
Anthropic's references of their chat APIs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example
from janus_jax.data.layouts.base import Draws, LayoutOptions, as_list, layout
from janus_jax.data.layouts.conversation import Message, example_of
from janus_jax.data.pictures import Unusable
from janus_jax.processing.tokenizer import IMAGE

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog")
PAIRS = (("query", "response"), ("instruction", "output"), ("question", "answer"))
_SENDERS, _CONTENTS = ("role", "from"), ("content", "value", "text")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


@layout
def messages(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """A record with a list of messages, or with a question and an answer.

    Lists are in `messages` or `conversations`: {role, content}, {from, value}, or pairs {human, assistant}; a
    content is a text or a list of blocks. Pictures are in blocks, or in `images` or `image`, where `<image>` in
    the texts says their places. Without a list: `query` and `response` with `history`, `instruction`, `input`
    and `output`.
    """
    return conversation(record, options)


@layout
def llava(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """Like `messages`, but a single picture stands before the question wherever `<image>` was.

    LLaVA's own training puts it there (llava/train/train.py, `preprocess_multimodal`).
    """
    return conversation(record, options, picture_first=True)


def conversation(record: Record, options: LayoutOptions, picture_first: bool = False) -> Example:
    if any(as_list(record.get(name)) for name in _OTHER_MEDIA):
        raise Unusable(reasons.VIDEO)
    said = messages_of(record)
    system = record.get("system")
    has_own = bool(said) and said[0].role.strip().lower() == "system"
    if isinstance(system, str) and system.strip() and not has_own:
        said.insert(0, Message("system", system))
    return example_of(said, _listed(record, options), options, picture_first)


def messages_of(record: Record) -> list[Message]:
    """The messages of a record, in whatever way it has them."""
    for name in LISTS:
        if record.get(name) is not None:
            found = record[name]
            if not isinstance(found, list | tuple):
                raise Unusable(reasons.FORM, f"{name} is no list but {type(found).__name__}")
            return [message for each in found for message in _message(each)]
    for asked, answered in PAIRS:
        if record.get(asked) is not None and answered in record:
            question, more = str(record[asked]), record.get("input")
            if asked == "instruction" and isinstance(more, str) and more.strip():
                question += f"\n{more}"
            pairs = [*as_list(record.get("history")), (question, record[answered])]
            return [m for pair in pairs for m in _pair(*pair)]
    raise Unusable(reasons.FORM, "neither messages nor conversations")


def _message(value: Any) -> list[Message]:
    if not isinstance(value, Mapping):
        raise Unusable(reasons.FORM, f"{type(value).__name__} instead of a message")
    sender = next((value[name] for name in _SENDERS if name in value), None)
    if sender is None:
        question = value.get("human", value.get("user"))
        if question is None or "assistant" not in value:
            raise Unusable(reasons.UNKNOWN_ROLE, "a message says neither role nor from")
        return _pair(question, value["assistant"])
    if not isinstance(sender, str):
        raise Unusable(reasons.UNKNOWN_ROLE, sender)
    content = next((value[name] for name in _CONTENTS if value.get(name) is not None), "")
    text, pictures = _content(content)
    learn = value.get("loss")
    return [Message(sender, text, pictures, learn is None or bool(learn))]


def _pair(question: Any, answer: Any) -> list[Message]:
    return [Message("user", *_content(question)), Message("assistant", *_content(answer))]


def _content(content: Any) -> tuple[str, tuple[Any, ...]]:
    """(text with markers, the pictures of blocks)."""
    if isinstance(content, str) or content is None:
        return content or "", ()
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        raise Unusable(reasons.FORM, f"{type(content).__name__} as what somebody says")
    pieces, pictures = [], []
    for block in content:
        if isinstance(block, str):
            block = {"type": "text", "text": block}
        kind = block.get("type") or next(
            (k for k in ("text", "image", "image_url") if k in block), ""
        )
        if kind in ("text", "input_text", "output_text"):
            text = block.get("text") or ""
            pictures += [None] * (text.count("<image>") + text.count(IMAGE))
            pieces.append(text)
        elif kind in ("image", "image_url", "input_image"):
            pictures.append(_of_block(block))
            pieces.append(IMAGE)
        elif kind in ("video", "audio", "video_url", "input_audio", "audio_url"):
            raise Unusable(reasons.VIDEO)
        else:
            raise Unusable(reasons.FORM, f"a block of type {kind!r}")
    return "\n".join(pieces), tuple(pictures)


def _of_block(block: Mapping[str, Any]) -> Any:
    """The picture that a block brings; None: it is one of the record's list."""
    for name in ("image_url", "image", "source", "url", "path", "base64"):
        value = block.get(name)
        if value is None:
            continue
        if name == "source" and isinstance(value, Mapping):
            return {"data": value.get("data"), "url": value.get("url")}
        return {"base64": value} if name == "base64" else value
    return None


def _listed(record: Record, options: LayoutOptions) -> list[Any]:
    names = options.image_field or ("images", "image", "image_path", "img_path")
    for name in names:
        if found := [value for value in as_list(record.get(name)) if value is not None]:
            return found
    return []
