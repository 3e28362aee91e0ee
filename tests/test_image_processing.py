"""Pixels against the official processor, and pictures that people really have."""

from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.processing import (
    generation_pixels,
    grid,
    load_image,
    to_float,
    to_uint8,
    understanding_pixels,
)

GOLDEN = np.load(Path(__file__).parent / "data/golden/image_processor.npz")
# Pillow rounds this one in another way since version 13, of which the recordings are.
RESAMPLED_ANEW = "96_5x300"
CASES = sorted(k.removeprefix("image_") for k in GOLDEN if k.startswith("image_"))


@pytest.mark.parametrize("case", CASES)
def test_understanding_pixels_equal_the_official_ones(case):
    size = int(case.split("_")[0])
    pixels = understanding_pixels(load_image(GOLDEN[f"image_{case}"]), size)
    if case == RESAMPLED_ANEW and int(PIL.__version__.split(".")[0]) < 13:
        difference = pixels.transpose(2, 0, 1).astype(int) - GOLDEN[f"resized_{case}"]
        assert np.abs(difference).max() <= 2
        return
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), GOLDEN[f"resized_{case}"])
    floats = to_float(pixels).transpose(2, 0, 1)[:, ::7, ::7]
    np.testing.assert_array_equal(floats, GOLDEN[f"pixels_{case}_sample"])


def test_minimum_side_never_exceeds_a_small_size():
    assert understanding_pixels(Image.new("RGB", (100, 1)), 8).shape == (8, 8, 3)


def test_uint8_survives_the_round_trip_up_to_truncation():
    every = np.arange(256, dtype=np.uint8)
    back = to_uint8(to_float(every)).astype(int)
    assert np.all((every - back >= 0) & (every - back <= 1))
    assert to_uint8(np.array([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0])).tolist() == [
        0,
        0,
        127,  # 127.5 is truncated
        254,
        255,
        255,
    ]


def test_generation_pixels_crop_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    np.testing.assert_array_equal(
        generation_pixels(load_image(wide), 10), np.full((10, 10, 3), 200, np.uint8)
    )
    tall = load_image(wide.transpose(1, 0, 2))
    # As in resizing before cropping, the filter reaches over the edge of the crop.
    assert generation_pixels(tall, 24)[4:-4].min() == 200
    assert generation_pixels(Image.new("RGB", (3, 5000)), 48).shape == (48, 48, 3)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = np.asarray(load_image(tmp_path / "a.png"))
    assert pixels[0, 0].tolist() == [10, 20, 30] and pixels[1, 1].tolist() == [255] * 3


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (4, 8)


def test_unreadable_images_are_user_errors(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:600])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("text.png", "cut.png", "empty.png", "missing.png", "."):
        with pytest.raises(UserError, match="cannot read image"):
            load_image(tmp_path / name)
    for bad in (np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8)):
        with pytest.raises(UserError, match="image array"):
            load_image(bad)
    with pytest.raises(UserError, match="no pixels"):
        load_image(Image.new("RGB", (0, 3)))


def test_grid_is_row_major():
    tiles = [np.full((2, 2, 3), i * 40, np.uint8) for i in range(3)]
    sheet = np.asarray(grid(tiles, columns=2))
    assert sheet.shape == (4, 4, 3)
    assert sheet[::2, ::2, 0].tolist() == [[0, 40], [80, 255]]
