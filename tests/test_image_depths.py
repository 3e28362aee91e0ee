"""Grey pictures whose values do not say what is white: it is in a tag, a chunk, or lost in a copy."""

import io
import struct
import zlib

import numpy as np
import pytest
from picture_files import BIG_ENDIAN, RAMP, check, grey, saved, tiff12
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.processing import load_image

COMPRESSIONS = (None, "tiff_deflate", "tiff_lzw", "packbits")
COPIES = {
    "copy": lambda image: image.copy(),
    "crop": lambda image: image.crop((0, 0, 32, 32)),
    "resize": lambda image: image.resize((32, 32)),
    "rotate": lambda image: image.rotate(0),
    "convert": lambda image: image.convert("I"),
}


def tiff32(values):
    """A grey TIFF of unsigned 32 bits."""
    height, width = values.shape
    data = values.astype("<u4").tobytes()
    tags = {256: width, 257: height, 258: 32, 259: 1, 262: 1, 273: 122, 277: 1, 278: height}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return io.BytesIO(
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + data
    )


def small_png(values, bits, clear):
    """A grey PNG of 1, 2, 4 or 8 bits; `clear` is its tRNS. As wide as fills whole bytes."""
    packed = values.reshape(len(values), -1, 8 // bits) << np.arange(8 - bits, -1, -bits)
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed.sum(-1))
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"tRNS", struct.pack(">H", clear))]
    blob = b"\x89PNG\r\n\x1a\n"
    for name, data in [*parts, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        blob += struct.pack(">I", len(data)) + name + data
        blob += struct.pack(">I", zlib.crc32(name + data))
    return io.BytesIO(blob)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tiff_whose_0_is_white_is_no_negative(compression):
    for white in (0, 1):
        info = {262: white}
        file = saved(Image.fromarray(RAMP), "TIFF", compression=compression, tiffinfo=info)
        wanted = grey(RAMP >> 8 if white else 255 - (RAMP >> 8))
        assert Image.open(file).tag_v2[262] == white
        for source in (file, Image.open(file)):
            check(source, wanted)


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_a_tiff_that_can_have_12_bits_is_refused(copy):
    opened = Image.open(tiff12(RAMP >> 4))
    check(opened, grey(RAMP >> 8))
    for dark in (opened, Image.open(saved(Image.fromarray(RAMP >> 4), "TIFF"))):
        with pytest.raises(UserError, match="copy of a TIFF of 12 or 16 bits"):
            load_image(COPIES[copy](dark))
    check(COPIES[copy](Image.open(saved(Image.fromarray(RAMP), "TIFF"))), grey(RAMP >> 8))
    check(Image.open(saved(BIG_ENDIAN, "TIFF")).copy(), grey(RAMP >> 8))
    eight = Image.open(saved(Image.fromarray((RAMP >> 8).astype(np.uint8)), "TIFF"))
    check(COPIES[copy](eight), grey(RAMP >> 8))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_any_depth(bits):
    values = np.resize(np.arange(2**bits), (17, 16))
    for clear in range(min(2**bits, 40)):
        wanted = grey(np.where(values == clear, 255, values * (255 // (2**bits - 1))))
        file = small_png(values, bits, clear)
        loaded = Image.open(file)
        loaded.load()
        for source in (file, Image.open(file), loaded, loaded.copy()):
            check(source, wanted)
    # Grey of 8 bits that could be stretched grey of 4, but has its transparent colour.
    values = np.resize(np.array([0, 17, 255, 15]), (4, 8))
    check(small_png(values, 8, 15), grey(np.where(values == 15, 255, values)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 4_200_000_000]], "from 0 to 4200000000"),
        ([[2**31, 2**31 + 1]], "from 2147483648 to 2147483649"),
        ([[5, 70_000]], "from 5 to 70000"),
    ],
)
def test_unsigned_values_are_named_as_such(values, message):
    with pytest.raises(UserError, match=f"32-bit integers, {message}:"):
        load_image(tiff32(np.array(values)))
