"""What a record means: pure functions (record, options, draws) -> Example | Rejected, one module a family."""

from __future__ import annotations

from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example, Rejected
from janus_jax.data.layouts.base import CAPTIONS, CLASSES, Draws, Layout, LayoutOptions, layout
from janus_jax.data.layouts.captions import captions
from janus_jax.data.layouts.classes import class_value, classes, is_id, read_class_names
from janus_jax.data.layouts.codes import FIELDS as _CODES
from janus_jax.data.layouts.codes import codes
from janus_jax.data.layouts.generation_json import generation_json
from janus_jax.data.layouts.messages import LISTS, PAIRS, llava, messages
from janus_jax.data.layouts.plain import plain
from janus_jax.data.layouts.prepared import prepared, record_of
from janus_jax.data.layouts.question_answer import question_answer

__all__ = [
    "LAYOUTS",
    "Draws",
    "Layout",
    "LayoutOptions",
    "class_value",
    "is_id",
    "layout",
    "layout_of",
    "read_class_names",
    "record_of",
]


def auto(record: Record, options: LayoutOptions, draws: Draws) -> Example | Rejected:
    """What the fields of the record say that it is."""
    return LAYOUTS[layout_of(record, options)](record, options, draws)


LAYOUTS: dict[str, Layout] = {
    "auto": auto,
    "llava": llava,
    "messages": messages,
    "captions": captions,
    "classes": classes,
    "question_answer": question_answer,
    "plain": plain,
    "generation_json": generation_json,
    "codes": codes,
    "prepared": prepared,
}


def layout_of(record: Record, options: LayoutOptions) -> str:
    """The name of the layout that a record has, by its fields and the task."""
    has = lambda *names: any(record.get(name) is not None for name in names)
    texts = record.get("texts")
    if isinstance(texts, list) and texts and isinstance(texts[0], dict) and "user" in texts[0]:
        return "question_answer"
    if options.draws_pictures and has(*_CODES):
        return "codes"
    if has(*LISTS):
        return "messages"
    if not options.draws_pictures:
        if has("question_answer") or (has("question") and has("answer", "answers")):
            return "question_answer"
        if any(has(asked) and answered in record for asked, answered in PAIRS):
            return "messages"
    if options.task == "text":
        return "plain"
    if has("input_prompt", "Task2") or isinstance(record.get("data"), list):
        return "generation_json"
    if options.caption_field:
        return "captions"
    return "classes" if has(*CLASSES) and not has(*CAPTIONS) else "captions"
