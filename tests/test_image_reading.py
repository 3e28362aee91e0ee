"""Pictures as people have them: every mode, depth and rotation, by value, and what must be refused."""

import io
import os
import signal
import socket
import struct
import zlib

import numpy as np
import pytest
from picture_files import BIG_ENDIAN, RAMP, check, grey, saved, tiff12
from PIL import Image, features

from janus_jax.errors import UserError
from janus_jax.processing import load_image

QUARTERS = np.zeros((8, 16, 3), np.uint8)  # no rotation or reflection of it equals another
QUARTERS[:4, :8], QUARTERS[:4, 8:], QUARTERS[4:, :8] = (250, 10, 10), (10, 240, 10), (10, 10, 230)
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.fixture(autouse=True)
def no_hang():
    """A picture that is waited for fails its test instead of stopping all of them."""

    def late(*args):
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def png(values, color, clear=None):
    """A PNG of 8 or 16 bits a channel, which Pillow cannot write for colours; `clear` is its tRNS."""
    depth = values.dtype.itemsize * 8
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, color, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if clear is not None:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
    blob = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        crc = struct.pack(">I", zlib.crc32(name + data))
        blob += struct.pack(">I", len(data)) + name + data + crc
    return io.BytesIO(blob)


def on_white(color, alpha):
    alpha = np.asarray(alpha, float)[..., None] / 255
    return np.asarray(color, float) * alpha + 255 * (1 - alpha)


# 16 bits

COLORS = np.stack([RAMP, RAMP[::-1], RAMP.T, RAMP[:, ::-1]], -1)
SIXTEEN = Image.fromarray(RAMP)
DARK = (RAMP // 257).astype(np.uint16)  # 0 to 255 of 65535
GREY_OF_16_BITS = {
    "png": lambda: png(RAMP, 0),
    "tiff": lambda: saved(SIXTEEN, "TIFF"),
    "tiff-deflate": lambda: saved(SIXTEEN, "TIFF", compression="tiff_deflate"),
    "tiff-big-endian": lambda: saved(BIG_ENDIAN, "TIFF"),
    "pgm": lambda: io.BytesIO(b"P5 32 32 65535 " + RAMP.astype(">u2").tobytes()),
    "pil": lambda: SIXTEEN,
    "pil-big-endian": lambda: BIG_ENDIAN,
    "pil-of-a-png": lambda: Image.open(png(RAMP, 0)),
    "pil-32": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "tiff-32": lambda: saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
}


@pytest.mark.parametrize("kind", GREY_OF_16_BITS)
def test_grey_of_16_bits_becomes_its_upper_byte(kind):
    check(GREY_OF_16_BITS[kind](), grey(RAMP >> 8))


@pytest.mark.parametrize("kind", ["png", "pgm", "pil", "tiff"])
def test_a_dark_picture_of_16_bits_stays_dark(kind):
    source = {
        "png": lambda: png(DARK, 0),
        "pgm": lambda: io.BytesIO(b"P5 32 32 65535 " + DARK.astype(">u2").tobytes()),
        "pil": lambda: Image.fromarray(DARK),
        "tiff": lambda: saved(Image.fromarray(DARK), "TIFF"),
    }[kind]()
    check(source, grey(0 * DARK))


def test_jpeg_2000_of_16_bits():
    check(saved(SIXTEEN, "JPEG2000"), grey(RAMP >> 8))


def test_tiff_of_12_bits_is_scaled_as_such():
    check(tiff12(RAMP >> 4), grey(RAMP >> 8))


def test_colours_of_16_bits():
    check(png(COLORS[..., :3], 2), COLORS[..., :3] >> 8)
    check(png(COLORS, 6), on_white(COLORS[..., :3] >> 8, COLORS[..., 3] >> 8), 1)
    pair = COLORS[..., :2]
    check(png(pair, 4), on_white(grey(pair[..., 0] >> 8), pair[..., 1] >> 8), 1)


def test_eight_bits_in_a_wider_mode():
    values = (RAMP >> 8).astype(np.uint8)
    check(Image.fromarray(values).convert("I"), grey(values))
    check(saved(Image.fromarray(values.astype(np.int32)), "TIFF"), grey(values))


def test_one_transparent_colour():
    """tRNS of 16 bits: Pillow compares it with 8 bits, or not at all."""
    eight = (RAMP >> 8).astype(np.uint8)
    colors8 = COLORS[..., :3].astype(np.uint16) >> 8
    colors8 = colors8.astype(np.uint8)
    for clear in (0, 128, 255):
        check(png(eight, 0, (clear,)), grey(np.where(eight == clear, 255, eight)))
    for clear in (0, 64, 255 * 64, 65472):
        check(png(RAMP, 0, (clear,)), grey(np.where(clear == RAMP, 255, RAMP >> 8)))
    for y, x in ((0, 0), (3, 7)):
        wanted = np.where((colors8 == colors8[y, x]).all(-1, keepdims=True), 255, colors8)
        assert (wanted != colors8).any()
        check(png(colors8, 2, tuple(colors8[y, x])), wanted)
        # Of 16 bits only the upper byte is compared: that is all that Pillow reads of the pixels.
        check(png(COLORS[..., :3], 2, tuple(COLORS[y, x, :3])), wanted)
    # (255, 255, 255) of 65535 is almost black, not white.
    white = np.full((4, 4, 3), 0xFF00, np.uint16)
    white[0, 0] = 255
    image = np.asarray(load_image(png(white, 2, (255, 255, 255))))
    assert image[0, 0].tolist() == [255] * 3 and image[1, 1].tolist() == [255] * 3
    white[1, 1] = 0
    assert np.asarray(load_image(png(white, 2, (0xFF00,) * 3)))[1, 1].tolist() == [0] * 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(RAMP.astype(np.int32) * 100), "from 0 to 6547200"),
        (Image.fromarray(RAMP.astype(np.int32) - 5), "from -5 to"),
        (Image.fromarray(RAMP.astype(np.float32) / 65535), "floats, from 0 to"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "floats"),
    ],
)
def test_values_of_unknown_meaning_are_refused(image, message):
    for source in (image, saved(image, "TIFF")):
        with pytest.raises(UserError, match=message):
            load_image(source)


# Modes, by value


def test_every_mode_keeps_its_colours():
    rgb = Image.fromarray(QUARTERS)
    luma = np.asarray(rgb.convert("L"))
    check(rgb, QUARTERS)
    check(rgb.convert("L"), grey(luma))
    check(rgb.convert("1"), grey(np.where(np.asarray(rgb.convert("1")), 255, 0)))
    check(rgb.quantize(8), QUARTERS, 1)
    check(rgb.convert("CMYK"), QUARTERS, 1)
    check(rgb.convert("YCbCr"), QUARTERS, 3)
    check(rgb.convert("HSV"), QUARTERS, 3)
    check(Image.new("LAB", (16, 8), (255, 128, 128)), np.full_like(QUARTERS, 255), 3)
    check(rgb.convert("RGBX"), QUARTERS)
    half = Image.new("L", rgb.size, 128)
    for mode in ("RGBA", "RGBa"):
        transparent = rgb.copy()
        transparent.putalpha(half)
        check(transparent.convert(mode), on_white(QUARTERS, np.asarray(half)), 2)
    for mode in ("LA", "La"):
        transparent = rgb.convert("L")
        transparent.putalpha(half)
        check(transparent.convert(mode), on_white(grey(luma), np.asarray(half)), 2)


def test_palettes_with_transparency():
    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "L").convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    for kind, clear in (("PNG", 1), ("GIF", 1), ("PNG", bytes([255, 0, 255, 128]))):
        pixels = np.asarray(load_image(saved(palette, kind, transparency=clear)))
        assert pixels[0].tolist() == [[200, 0, 0], [255, 255, 255]]
        assert pixels[1, 0].tolist() == [0, 0, 200]
        assert pixels[1, 1].tolist() == ([9] * 3 if clear == 1 else [132] * 3)
    palette.info["transparency"] = 0
    assert np.asarray(load_image(palette))[0, 0].tolist() == [255] * 3
    assert palette.info == {"transparency": 0}  # what was given is not changed


def test_cmyk_jpeg():
    blob = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    check(blob, np.broadcast_to([255, 0, 0], (16, 16, 3)), 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    red = np.broadcast_to([255, 0, 0], (8, 8, 3))
    check(file, red)
    opened = Image.open(file)
    check(opened, red)
    opened.seek(2)
    check(opened, np.broadcast_to([0, 0, 255], (8, 8, 3)))


# Ways to give a picture


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_exif_orientation_of_files_and_pil_images(tmp_path, orientation):
    wanted = UPRIGHT[orientation](QUARTERS.astype(float))
    for kind in ("png", "tiff", "webp", "avif", "jpeg"):
        if kind == "avif" and not features.check("avif"):
            continue
        exif = Image.Exif()  # a new one: writing AVIF takes the orientation out of it
        exif[0x0112] = orientation
        path = tmp_path / f"a.{kind}"
        best = {"quality": 100, "subsampling": 0}
        exact = {
            "webp": {"lossless": True},
            "jpeg": best,
            "avif": {"quality": 100, "subsampling": "4:4:4"},
        }
        Image.fromarray(QUARTERS).save(path, exif=exif, **exact.get(kind, {}))
        tolerance = 8 if kind in ("jpeg", "avif") else 0
        check(path, wanted, tolerance)
        check(str(path), wanted, tolerance)
        check(io.BytesIO(path.read_bytes()), wanted, tolerance)
        with Image.open(path) as lazy:
            check(lazy, wanted, tolerance)
        loaded = Image.open(path)
        loaded.load()
        check(loaded, wanted, tolerance)
        check(loaded, wanted, tolerance)  # and again: it is not changed
        if kind != "tiff":  # which Pillow turns itself
            assert loaded.size == (16, 8)
            check(loaded.convert("RGB"), wanted, tolerance)


def test_broken_exif_does_not_hide_a_picture():
    check(saved(Image.fromarray(QUARTERS), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff"), QUARTERS)
    exif = Image.Exif()
    exif[0x0112] = 99
    check(saved(Image.fromarray(QUARTERS), "PNG", exif=exif), QUARTERS)


def test_open_files_are_read_from_their_start(tmp_path):
    file = saved(Image.fromarray(QUARTERS), "PNG")
    file.seek(0, io.SEEK_END)
    check(file, QUARTERS)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    with open(tmp_path / "a.png", "rb") as opened:
        check(opened, QUARTERS)
    with open(tmp_path / "a.png") as opened, pytest.raises(UserError, match="image file"):
        load_image(opened)
    with (
        open(tmp_path / "a.png", encoding="latin-1") as opened,
        pytest.raises(UserError, match="rb"),
    ):
        load_image(opened)
    file.close()
    with pytest.raises(UserError, match="closed file"):
        load_image(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_truncated_pictures(kind, share):
    blob = saved(Image.effect_noise((64, 64), 50).convert("RGB"), kind).getvalue()
    cut = blob[: int(len(blob) * share)]
    with pytest.raises(UserError, match="cannot read the image file"):
        load_image(io.BytesIO(cut))
    try:
        lazy = Image.open(io.BytesIO(cut))
    except Exception:
        return  # Pillow sees it at once
    with pytest.raises(UserError, match="cannot read the image: "):
        load_image(lazy)


def test_closed_pictures(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "a.png")
    never_read = Image.open(tmp_path / "a.png")
    never_read.close()
    with Image.open(tmp_path / "a.png") as left:
        pass
    read = Image.open(tmp_path / "a.png")
    read.load()
    read.close()
    made = Image.fromarray(QUARTERS)
    made.close()
    for image in (never_read, left, read, made):
        with pytest.raises(UserError, match=r"cannot read the image: .*closed"):
            load_image(image)


def test_files_that_are_none_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.png"))
    cases = {
        tmp_path / "pipe.png": "it is a named pipe, not a file",
        tmp_path / "link.png": "it is a named pipe, not a file",
        tmp_path / "loop.png": "symbolic links",
        tmp_path / "socket.png": "it is a socket, not a file",
        tmp_path: "it is a directory, not a file",
        "": "it is a directory, not a file",
        "/dev/zero": "it is a device, not a file",
        "/dev/null": "it is a device, not a file",
        tmp_path / "none.png": "No such file",
        "a\0b": "null",
        "x" * 5000: "name too long",
        "https://example.com/a.png": "web address",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            load_image(path)
        assert len(str(error.value)) < 400
    server.close()
    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe, pytest.raises(UserError, match="cannot seek"):
        load_image(pipe)


def test_names_are_printed_without_control_characters(tmp_path):
    with pytest.raises(UserError) as error:
        load_image(tmp_path / "a\x1b[2Jb\n.png")
    assert str(error.value).isprintable() and "a\\x1b[2Jb\\n.png" in str(error.value)


def test_postscript_is_not_run():
    blob = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n"
    with pytest.raises(UserError, match="no picture in a format"):
        load_image(io.BytesIO(blob))


@pytest.mark.parametrize("source", [b"\x89PNG secret", bytearray(b"x"), None, 0, 3.5, [[1, 2]], {}])
def test_other_types_are_refused_without_their_content(source):
    with pytest.raises(UserError, match=f"not {type(source).__name__}") as error:
        load_image(source)
    assert "secret" not in str(error.value)
    if isinstance(source, bytes | bytearray):
        assert "io.BytesIO" in str(error.value)


# Arrays


def test_arrays_that_are_pictures():
    luma = QUARTERS[..., 0]
    check(QUARTERS, QUARTERS)
    check(QUARTERS[::-1, ::-1], QUARTERS[::-1, ::-1])
    check(luma, grey(luma))
    check(luma[..., None], grey(luma))
    alpha = np.full((8, 16, 1), 51, np.uint8)
    check(np.concatenate([QUARTERS, alpha], -1), on_white(QUARTERS, alpha[..., 0]), 1)
    check(np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        *((np.zeros((4, 4, 3), dtype), dtype) for dtype in ("uint16", "int8", "int32", "int64")),
        *((np.zeros((4, 4, 3), dtype), dtype) for dtype in ("float16", "float32", "float64")),
        *(
            (np.zeros((4, 4, 3), dtype), "not ")
            for dtype in ("bool", "complex64", "U1", "O", ">u2")
        ),
        (np.zeros((3, 8, 8), np.uint8), r"the channels come last: use .transpose\(1, 2, 0\)"),
        (np.zeros((1, 8, 8), np.uint8), "the channels come last"),
        (np.zeros((8, 8, 2), np.uint8), r"not \[8, 8, 2\]"),
        (np.zeros((8, 8, 5), np.uint8), r"not \[8, 8, 5\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "not a batch"),
        (np.zeros(8, np.uint8), r"not \[8\]"),
        (np.array(3, np.uint8), r"not \[\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.uint8), "no pixels"),
    ],
)
def test_arrays_that_are_none(array, message):
    with pytest.raises(UserError, match=message) as error:
        load_image(array)
    assert "the image array" in str(error.value) and "\n" not in str(error.value)
