"""Examples as records that are MessagePack maps: what `prepare` writes, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example, Generation, Text, Understanding
from janus_jax.data.layouts.base import Draws, LayoutOptions, layout
from janus_jax.data.pictures import Unusable, find_picture


def record_of(example: Example, pictures: Sequence[bytes] = ()) -> bytes:
    """An example as bytes.

    Args:
      example: its codes are kept, as uint16; of its pictures, `pictures` are kept instead.
      pictures: encoded, in the order of the example's.
    """
    import msgpack  # flax needs it, so it is there

    record: Record = {} if example.weight == 1.0 else {"weight": float(example.weight)}
    if isinstance(example, Generation):
        record["prompt"] = example.prompt
        if example.codes is not None:
            record["codes"] = np.asarray(example.codes).astype("<u2").tobytes()
        else:
            record["image"] = pictures[0]
    else:
        record |= {"turns": [list(turn) for turn in example.turns]} if example.turns else {}
        record |= {"system": example.system} if example.system is not None else {}
        if isinstance(example, Understanding):
            record["images"] = list(pictures)
        elif example.text:
            record["text"] = example.text
    return msgpack.packb(record)


@layout
def prepared(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """The example of a record that `record_of` wrote."""
    weight = record.get("weight", 1.0)
    turns = [(question, answer) for question, answer in record.get("turns", ())]
    if "prompt" in record:
        picture: dict[str, Any] = (
            {"codes": np.frombuffer(record["codes"], "<u2").astype(np.int32)}
            if "codes" in record
            else {"picture": find_picture(record["image"], ())}
        )
        return Generation(prompt=record["prompt"], weight=weight, **picture)
    if record.get("images"):
        pictures = [find_picture(value, ()) for value in record["images"]]
        return Understanding(
            images=pictures, turns=turns, system=record.get("system"), weight=weight
        )
    if not turns and not record.get("text"):
        raise Unusable(reasons.EMPTY_TEXT)
    return Text(
        text=record.get("text", ""), turns=turns, system=record.get("system"), weight=weight
    )
