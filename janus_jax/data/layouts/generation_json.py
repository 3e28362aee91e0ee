"""Pictures made by other models, with their prompts: ShareGPT-4o-Image, JourneyDB, Janus-Pro-R1."""

from __future__ import annotations

from collections.abc import Mapping

from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example
from janus_jax.data.layouts.base import Draws, LayoutOptions, as_list, field, layout, one_picture
from janus_jax.data.layouts.captions import DESCRIBE, caption_of, described
from janus_jax.data.pictures import Unusable, find_picture

_PROMPTS = ("input_prompt", "Task2.Caption", "prompt", "caption", "text")
_PICTURES = ("output_image", "img_path", "image_path", "image")


@layout
def generation_json(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """A prompt and the picture drawn by it.

    ShareGPT-4o-Image: `input_prompt`, `output_image`, and `input_image` of edits, which are rejected;
    JourneyDB: `img_path`, `Task2.Caption` and, where that is missing, `prompt`; Janus-Pro-R1: `prompt` and
    `data`, a list of {img_path}, one of which is drawn.
    """
    if as_list(record.get("input_image")):
        raise Unusable(reasons.PICTURE_IN_PROMPT, "a picture to edit")
    if options.caption_field:
        prompt = caption_of(record, options, draws)
    else:
        found = [v for v in (field(record, name) for name in _PROMPTS) if v]
        if not found:
            there = any(field(record, name) is not None for name in _PROMPTS)
            raise Unusable(reasons.EMPTY_TEXT if there else reasons.NO_CAPTION)
        prompt = caption_of({"caption": found[0]}, options, draws)
    if isinstance(record.get("data"), list) and not options.image_field:
        drawn = [each for each in record["data"] if isinstance(each, Mapping)]
        if not drawn:
            raise Unusable(reasons.NO_PICTURE)
        chosen = draws.choice(drawn)
        value = next((chosen[name] for name in _PICTURES if chosen.get(name)), None)
        picture = find_picture(value, options.roots)
    else:
        picture = one_picture(record, options)
    return described(record, picture, prompt, options, draws, DESCRIBE)
