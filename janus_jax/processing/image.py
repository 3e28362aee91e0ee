"""Pictures -> model pixels and back, as the official processor does it.

Source: deepseek-ai/Janus `janus/models/image_processing_vlm.py` and `generation_inference.py`.
Arrays are uint8 [H, W, 3] in RGB, or float32 in [-1, 1].
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from janus_jax.errors import UserError
from janus_jax.files import atomic_write
from janus_jax.untrusted import KINDS

BACKGROUND = (127, 127, 127)  # int(0.5 * 255), the padding of the understanding path
MIN_SIDE = 14  # min_size of the official processor
# Phones make 200 megapixels and more. Pillow holds 4 bytes a pixel, so this is 1 GiB.
MAX_PIXELS = 2**28
# Their decoders hold the picture about four times.
COSTLY_FORMATS = ("AVIF", "JPEG2000", "WEBP")
# Above this many pixels a picture is reduced while it is read, as long as both sides keep KEPT_SIDE;
# below it nothing is done that the official processor does not do.
LARGE_PIXELS = 2**26
KEPT_SIDE = 2048

# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339

ImageLike = str | Path | Image.Image | np.ndarray | BinaryIO

# EXIF orientation -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: ImageLike) -> Image.Image:
    """Reads a picture as RGB.

    EXIF rotation is applied (also to a PIL image: one that was turned by hand must not carry the
    orientation any more), transparency is laid over white, 16 bits become the upper 8, and of an animation
    the first frame is taken (of a PIL image the frame it stands at). A picture of more than 64 megapixels
    is reduced by a whole number while it is read, but never below 2048 pixels on its short side.

    A copy of a PIL image of a TIFF (also a crop, resized, ...) does not know how many bits its values had,
    nor whether 0 is white there. Of grey above 8 bits, one without a value above 4095 is refused, as it can
    be of 12 bits or dark; any other is taken as 16 bits with a black 0.

    Args:
      source: a file name, a PIL image, an open binary file (read from its start), or a uint8 array [H, W],
        [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA).

    Returns:
      A new image of mode "RGB".

    Raises:
      UserError: no such file or no regular one; a picture that cannot be read, is truncated, closed, without
        pixels or above 268 megapixels (134 of WebP, AVIF and JPEG 2000); values whose range is unknown
        (floats, 32-bit integers beyond 16 bits, copies of TIFFs of perhaps 12 bits); or an argument of
        another type.
    """
    if isinstance(source, np.ndarray):
        name, read = "the image array", lambda: _from_array(source)
    elif isinstance(source, Image.Image):
        name, read = "the image", lambda: _rgb(source)
    elif isinstance(source, str | os.PathLike):
        name, read = f"image {_shown(os.fspath(source))}", lambda: _from_path(source)
    elif hasattr(source, "read"):
        name, read = "the image file", lambda: _from_file(source)
    else:
        encoded = isinstance(source, bytes | bytearray | memoryview)
        hint = "; give io.BytesIO(data)" if encoded else ""
        raise UserError(
            "an image must be a file name, a PIL image, an open binary file or a uint8 array, "
            f"not {type(source).__name__}{hint}"
        )
    try:
        return read()
    except UserError as error:
        raise UserError(f"cannot read {name}: {error}") from error.__cause__
    except AssertionError as error:  # what Pillow says of some images that were closed
        raise UserError(f"cannot read {name}: it was closed before it was read") from error
    except MemoryError as error:
        raise UserError(f"cannot read {name}: not enough memory for its pixels") from error
    except Exception as error:  # Pillow raises many types for broken files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read {name}: {reason}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    shape = list(array.shape)
    if array.dtype != np.uint8:
        raise UserError(
            f"it must be uint8 with values from 0 to 255, not {array.dtype}; scale it and use "
            ".astype(np.uint8)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "; the channels come last: use .transpose(1, 2, 0)" if first else ""
        hint = "; it takes one picture, not a batch" if array.ndim == 4 else hint
        raise UserError(f"it must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not {shape}{hint}")
    if 0 in shape:
        raise UserError(f"it has no pixels: its shape is {shape}")
    return _rgb(Image.fromarray(array[..., 0] if shape[2:] == [1] else array))


def _from_path(source: str | os.PathLike) -> Image.Image:
    path = Path(source)
    if "://" in str(source):
        raise UserError("it is a web address; download the picture first")
    # Before it is opened: a pipe without a writer would wait for ever.
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise UserError(f"it is {KINDS.get(kind, 'something else')}, not a file")
    with path.open("rb") as file:
        return _from_file(file)


def _from_file(file: BinaryIO) -> Image.Image:
    with _identify(file) as image:
        max_pixels = MAX_PIXELS // 2 if image.format in COSTLY_FORMATS else MAX_PIXELS
        if image.width * image.height > max_pixels:
            raise UserError(
                f"{image.width}x{image.height} pixels are too many, at most {max_pixels // 10**6} megapixels "
                f"of {image.format} are read; make it smaller first"
            )
        if image.width * image.height > LARGE_PIXELS:
            image.draft(None, (KEPT_SIDE, KEPT_SIDE))  # JPEG decodes to a half, quarter or eighth
        return _rgb(image)


def _identify(file: BinaryIO) -> Image.Image:
    """`Image.open` without its limit on pixels, which is below what phones make, and global."""
    if not (hasattr(file, "seek") and file.seekable()):
        raise UserError("the file cannot seek; read it into io.BytesIO first")
    file.seek(0)
    prefix = file.read(16)
    if not isinstance(prefix, bytes):
        raise UserError("the file is open as text; open it with mode 'rb'")
    if not prefix:
        raise UserError("it is empty")
    tried = {"EPS"}  # a program, not a picture: Pillow would start Ghostscript
    reason = "it is no picture in a format that Pillow reads"
    for register in (Image.preinit, Image.init):
        register()
        for kind in [k for k in Image.ID if k not in tried]:
            tried.add(kind)
            make, accepts = Image.OPEN[kind]
            try:
                accepted = accepts is None or accepts(prefix)
                if isinstance(accepted, str):  # known, but this Pillow is built without it
                    reason = accepted
                elif accepted:
                    file.seek(0)
                    return make(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # Pillow's sign that a format does not know the file
    raise UserError(reason)


def _rgb(image: Image.Image) -> Image.Image:
    """A new image: RGB on white, upright, reduced if it is very large."""
    if 0 in image.size:
        raise UserError(f"it has no pixels: its size is {image.width}x{image.height}")
    stored = str([part.args for part in getattr(image, "tile", [])])  # gone once it is loaded
    image.load()
    convert = _converter(image, stored)
    side, large = min(image.size), image.width * image.height > LARGE_PIXELS
    factor = max(side // KEPT_SIDE, 1) if large else 1
    width, height = (-(-s // factor) for s in image.size)
    result = Image.new("RGB", (width, height))
    # In strips, so that the copies that a conversion makes do not add up to gigabytes.
    rows = max(2**22 // (image.width * factor), 1) * factor
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(strip).reduce(factor), (0, top // factor))
    turn = _UPRIGHT.get(_orientation(image))  # only now: Pillow turns TIFF itself, in `load`
    return result if turn is None else result.transpose(turn)


def _converter(image: Image.Image, stored: str) -> Callable[[Image.Image], Image.Image]:
    """What turns a strip of `image` into RGB; `stored` is Pillow's name of how its file has the pixels."""
    if image.mode == "F":
        low, high = image.getextrema()
        raise UserError(
            f"its pixels are floats, from {low:g} to {high:g}: what is white is not known; convert it "
            "to 8 bits first"
        )
    clear = image.info.get("transparency")
    if image.mode == "I" or image.mode.startswith("I;16"):
        shift, negative = _bits(image) - 8, _tags(image).get(_PHOTOMETRIC) == 0
        return lambda strip: _high_byte(np.asarray(strip), shift, clear, negative)
    if clear is None and image.mode not in ("RGBA", "LA", "PA", "RGBa", "La"):
        return lambda strip: strip.convert("RGB")
    # Pillow keeps the upper byte of 16 bits, but both bytes of the colour that is transparent.
    if isinstance(clear, tuple) and ("16" in stored or max(clear) > 255):
        clear = tuple(value >> 8 for value in clear)
    if isinstance(clear, int) and image.mode == "L":
        clear *= _grey_step(image, clear, stored)

    def on_white(strip: Image.Image) -> Image.Image:
        if clear is not None:
            strip.info["transparency"] = clear
        if strip.mode == "La":  # Pillow converts it to nothing else
            strip = strip.convert("LA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB")

    return on_white


def _grey_step(image: Image.Image, clear: int, stored: str) -> int:
    """Pillow stretches grey of 2 and 4 bits to 0..255, but not the grey that is transparent: by how much."""
    steps = {"L;2": 85, "L;4": 17}
    for name, step in steps.items():
        if f"'{name}'" in stored:
            return step
    # Once it is loaded only the values tell: a colour that no pixel has was not meant to be transparent.
    counts = image.histogram()
    if stored == "[]" and 0 < clear < 16 and not counts[clear]:
        used = [value for value, count in enumerate(counts) if count]
        for step in steps.values():
            if clear * step in used and all(value % step == 0 for value in used):
                return step
    return 1


def _tags(image: Image.Image) -> dict[int, Any]:
    """The tags of a TIFF; {} of other pictures, and of copies, which lose them."""
    return dict(getattr(image, "tag_v2", {}))


def _bits(image: Image.Image) -> int:
    """How many bits the values of a picture of mode I or I;16 have."""
    tags = _tags(image)
    bits = tags.get(_BITS_PER_SAMPLE, (0,))[0]
    # A PIL image with a compression and more than 8 bits was made of a TIFF.
    if not tags and "compression" in image.info:
        high = int(np.asarray(image).max())  # `getextrema` does not take every mode
        if high <= 4095 and (image.mode != "I" or high > 255):
            raise UserError(
                f"it is a copy of a TIFF of 12 or 16 bits, with values up to {high}: what is white is not "
                "known any more; give the file or what Image.open made of it, or convert it to 8 bits first"
            )
    if image.mode != "I":
        return bits if 8 < bits < 16 else 16  # Pillow does not scale 12 bits to 16
    low, high = image.getextrema()
    if low < 0 or high > 0xFFFF:
        if bits == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:  # Pillow reads them as signed
            values = np.asarray(image).view(np.uint32)
            low, high = values.min(), values.max()
        raise UserError(
            f"its pixels are 32-bit integers, from {low} to {high}: what is white is not known; convert "
            "it to 8 or 16 bits first"
        )
    # PGM of 16 bits has this mode, and so has what a program widened from 8 bits.
    return 16 if high > 255 or bits == 16 or image.format in ("PPM", "PNG") else 8


def _high_byte(values: np.ndarray, shift: int, clear: int | None, negative: bool) -> Image.Image:
    """`negative`: 0 is white (scanners, X-ray), which Pillow heeds up to 8 bits only."""
    grey = (values >> shift).astype(np.uint8)
    if negative:
        grey = 255 - grey
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF in a picture that can be read: as viewers do
        return 1


def _shown(name: str) -> str:
    """A file name that is safe to print on one line."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."


def understanding_pixels(image: Image.Image, size: int) -> np.ndarray:
    """The understanding input: long side `size`, padded to a square with grey.

    Sides are floored (not rounded) and at least 14; bicubic on the PIL image; centred.

    Returns:
      uint8 [size, size, 3].
    """
    longest = max(image.size)
    width, height = (
        min(size, max(int(side / longest * size), MIN_SIDE))  # floor
        for side in image.size
    )
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), BACKGROUND)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def generation_pixels(image: Image.Image, size: int) -> np.ndarray:
    """The generation target: short side `size`, centre crop (Janus-Pro report, training data).

    Returns:
      uint8 [size, size, 3].
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def grid(images: Sequence[Image.Image | np.ndarray], columns: int | None = None) -> Image.Image:
    """Pictures of one size, row by row, on white; `columns` defaults to a near-square grid."""
    if not images:
        raise UserError("a grid needs at least one image")
    tiles = [i if isinstance(i, Image.Image) else Image.fromarray(i) for i in images]
    columns = min(columns or int(np.ceil(np.sqrt(len(tiles)))), len(tiles))
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return sheet


def save_image(path: str | os.PathLike, image: Image.Image) -> None:
    """Writes a PNG file; half of one is never there.

    Raises:
      OSError: it cannot be written.
    """
    atomic_write(Path(path), lambda temporary: image.save(temporary, "PNG"))
