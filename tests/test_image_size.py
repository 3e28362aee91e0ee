"""Very large pictures are read in bounded memory, and what only claims to be one is refused."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.processing import image as image_module
from janus_jax.processing import load_image, understanding_pixels


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def claim(width, height):
    """A PNG that says how large it is and then ends."""
    blob = bytearray(saved(Image.new("L", (1, 1)), "PNG").getvalue())
    blob[16:24] = struct.pack(">II", width, height)
    blob[29:33] = struct.pack(">I", zlib.crc32(blob[12:29]))
    return io.BytesIO(bytes(blob))


@pytest.mark.parametrize("size", [(17000, 16000), (65000, 65000), (2**31 - 1, 1), (10**9, 10**9)])
def test_bombs_are_refused_by_what_they_claim(size):
    with pytest.raises(UserError, match="268 megapixels"):
        load_image(claim(*size))


def test_phones_are_not_bombs(tmp_path):
    """200 megapixels, above the limit of Pillow."""
    exif = Image.Exif()
    exif[0x0112] = 6
    # Made from a small one: the size is written into the header, the file ends early, and that is seen.
    with pytest.raises(UserError, match="truncated"):
        load_image(claim(16320, 12240))
    before = Image.MAX_IMAGE_PIXELS
    Image.new("L", (16320, 12240), 200).save(tmp_path / "a.jpg", exif=exif, quality=50)
    image = load_image(tmp_path / "a.jpg")
    assert image.size == (3060, 4080) and set(np.unique(image)) == {200}
    assert before == Image.MAX_IMAGE_PIXELS


def test_costly_formats_have_a_lower_limit(monkeypatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    square = Image.new("RGB", (9, 9))
    assert load_image(saved(square, "PNG")).size == (9, 9)
    for kind in ("WEBP", "JPEG2000"):
        with pytest.raises(UserError, match="9x9 pixels are too many"):
            load_image(saved(square, kind))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "pil", "array", "16", "alpha"])
def test_very_large_pictures_are_reduced_and_look_the_same(monkeypatch, kind):
    y, x = np.mgrid[:301, :437] / 437
    values = np.stack([x, y, 1 - x], -1) * 200 + 20
    image = Image.fromarray(values.astype(np.uint8))
    source = {
        "pil": image,
        "array": np.asarray(image),
        "16": Image.fromarray((values[..., 0] * 256).astype(np.uint16)),
        "alpha": Image.fromarray(np.concatenate([values, values[..., :1]], -1).astype(np.uint8)),
    }.get(kind)
    source = source if source is not None else saved(image, kind)
    whole = load_image(source)
    assert whole.size == (437, 301)
    monkeypatch.setattr(image_module, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(image_module, "KEPT_SIDE", 70)
    small = load_image(source)
    assert small.size == (110, 76)
    assert image.size == (437, 301)
    one, other = (understanding_pixels(i, 48).astype(int) for i in (whole, small))
    assert np.abs(one - other).max() <= 3


def test_strips_join_without_seams(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (3000, 2000, 3), np.uint8)  # two strips
    np.testing.assert_array_equal(load_image(noise), noise)
    monkeypatch.setattr(image_module, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(image_module, "KEPT_SIDE", 600)
    wanted = np.asarray(Image.fromarray(noise).reduce(3))
    np.testing.assert_array_equal(load_image(noise), wanted)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak from Linux")
def test_13000_by_13000_pixels_with_transparency_fit_into_a_gigabyte(tmp_path):
    Image.new("RGBA", (13000, 13000), (10, 20, 30, 128)).save(tmp_path / "a.png", compress_level=1)
    program = """if True:
        import sys
        from janus_jax.processing import load_image
        print(load_image(sys.argv[1]).getpixel((5, 5)))
        # Not getrusage: its peak is inherited from the process that started this one.
        print(next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
    """
    command = [sys.executable, "-c", program, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    color, kilobytes = done.stdout.splitlines()
    assert color == "(132, 137, 142)" and int(kilobytes) < 1_100_000
