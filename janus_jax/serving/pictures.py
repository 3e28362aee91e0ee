"""Pictures of requests, which come as `data:` URLs and from nowhere else, and those of answers."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings

import numpy as np
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.processing import load_image, understanding_pixels
from janus_jax.serving.errors import ApiError
from janus_jax.serving.limits import Limits
from janus_jax.untrusted import printable, shown

# Formats of the web; decoders of others are not offered to strangers.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,20}):")


def picture_of_url(url: str, size: int, limits: Limits, param: str) -> np.ndarray:
    """The picture in a `data:` URL as the model sees it.

    It is brought to the model's size at once, so that requests that wait hold kilobytes.

    Args:
      url: of a request. Nothing is ever fetched, whatever it says.
      size: side of the model's input in pixels.
      limits: of bytes and pixels.
      param: the name of the field.

    Returns:
      uint8 [size, size, 3].

    Raises:
      ApiError: another kind of URL, bad base64, too large, or no picture.
    """
    return picture_of_bytes(_bytes_of(url, limits, param), size, limits, param)


def picture_of_bytes(data: bytes, size: int, limits: Limits, param: str) -> np.ndarray:
    """The picture in a file as the model sees it.

    Args:
      data: of the file.
      size, limits: see `picture_of_url`.
      param: what messages call it.

    Returns:
      uint8 [size, size, 3].

    Raises:
      ApiError: too large, or no picture.
    """
    if len(data) > limits.picture_bytes:
        raise _too_heavy(limits, param)
    if not data:
        raise _wrong(param, "is empty", "invalid_picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: the check is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _wrong(param, "has too many pixels", "picture_too_large") from None
    except Exception as error:  # Pillow raises many types for broken files
        listed = ", ".join(FORMATS)
        raise _wrong(
            param, f"is no picture that can be read ({listed})", "invalid_picture"
        ) from error
    with image:
        # The header alone says how much memory the pixels take.
        if image.width * image.height > limits.picture_pixels:
            most = limits.picture_pixels / 10**6
            raise _wrong(
                param,
                f"has {image.width}x{image.height} pixels, at most {most:g} megapixels are taken: make it smaller",
                "picture_too_large",
            )
        try:
            return understanding_pixels(load_image(image), size)
        except UserError as error:
            raise _wrong(param, f": {printable(error, 200)}", "invalid_picture") from error


def _bytes_of(url: str, limits: Limits, param: str) -> bytes:
    start = _DATA.match(url)
    if start is None:
        scheme = _SCHEME.match(url)
        name = scheme[1].lower() if scheme else ""
        what = f"is {name}:" if name and name != "data" else f"is {shown(url[:40])}"
        raise _wrong(
            param,
            f"{what}, but pictures are not fetched: send the file itself as data:image/png;base64,...",
            "unsupported_url",
        )
    encoded = url[start.end() :]
    if len(encoded) > -(-limits.picture_bytes // 3) * 4:
        raise _too_heavy(limits, param)
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong(param, f"is no base64: {printable(error)}", "invalid_base64") from error


def _too_heavy(limits: Limits, param: str) -> ApiError:
    most = limits.picture_bytes / 2**20
    return _wrong(param, f"has more than {most:g} MiB", "picture_too_large")


def _wrong(param: str, what: str, code: str) -> ApiError:
    return ApiError(f"{param} {what}".replace(" : ", ": "), param=param, code=code)


def png_bytes(picture: np.ndarray) -> bytes:
    """uint8 [h, w, 3] -> a PNG. The same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def png_base64(picture: np.ndarray) -> str:
    """uint8 [h, w, 3] -> a PNG in base64."""
    return base64.b64encode(png_bytes(picture)).decode("ascii")
