"""Picture files that Pillow does not write, and what `load_image` must make of a picture."""

import io
import struct

import numpy as np
from PIL import Image

from janus_jax.processing import load_image

RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
BIG_ENDIAN = Image.frombytes("I;16B", (32, 32), RAMP.astype(">u2").tobytes())


def tiff12(values):
    """A grey TIFF of 12 bits, two values in three bytes."""
    a, b = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: height}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return io.BytesIO(
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + data
    )


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def check(source, wanted, tolerance=0):
    image = load_image(source)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert pixels.shape == wanted.shape
    assert np.abs(pixels.astype(float) - wanted).max() <= tolerance
