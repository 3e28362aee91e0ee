"""Plain text, all of it learnt."""

from __future__ import annotations

from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example, Text
from janus_jax.data.layouts.base import TEXTS, Draws, LayoutOptions, field, layout, words
from janus_jax.data.pictures import Unusable


@layout
def plain(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """The text of a record, in `text`, `content` or such."""
    names = options.caption_field or TEXTS
    found = [v for v in (field(record, name) for name in names) if v is not None]
    if not found:
        raise Unusable(reasons.EMPTY_TEXT, f"no field {' or '.join(names[:3])}")
    return Text(text=words(found[0]))
