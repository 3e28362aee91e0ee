"""Pictures to draw whose codes, by the image tokenizer of the model, were computed before."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np

from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example, Generation
from janus_jax.data.layouts.base import Draws, LayoutOptions, filled, layout
from janus_jax.data.layouts.captions import caption_of
from janus_jax.data.pictures import Unusable

FIELDS = ("codes", "code", "image_codes", "tokens", "codes.npy", "npy")
_NPY = b"\x93NUMPY"


@layout
def codes(record: Record, options: LayoutOptions, draws: Draws) -> Example:
    """A prompt or caption, and `codes`: a list of integers, or bytes (uint16, little-endian, or .npy), also in
    base64."""
    value = next((record[name] for name in FIELDS if record.get(name) is not None), None)
    if value is None:
        raise Unusable(reasons.NO_CODES)
    text = caption_of(record, options, draws)
    template = draws.choice(options.prompt) if options.prompt else "{caption}"
    return Generation(prompt=filled(template, record, caption=text), codes=_array(value))


def _array(value: Any) -> np.ndarray:
    """int32 [N]."""
    if hasattr(value, "read"):
        value = value.read()
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Unusable(reasons.NO_CODES, f"wrong base64: {error}") from error
    if isinstance(value, bytes):
        if value.startswith(_NPY):
            value = np.load(io.BytesIO(value), allow_pickle=False)
        elif len(value) % 2:
            raise Unusable(reasons.NO_CODES, f"{len(value)} bytes are no whole uint16")
        else:
            value = np.frombuffer(value, "<u2")
    array = np.asarray(value)
    if not array.size or not np.issubdtype(array.dtype, np.integer):
        raise Unusable(reasons.NO_CODES, f"{array.dtype} instead of integers")
    return array.reshape(-1).astype(np.int32)
