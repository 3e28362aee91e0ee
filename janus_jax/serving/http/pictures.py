"""Pictures of requests, which come in `data:` URLs or as files that were fetched, and those of answers."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import re
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.processing import load_image, understanding_pixels
from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.image_hosts import ImageHost, ImageUrl, image_url, is_allowed
from janus_jax.serving.http.limits import Limits
from janus_jax.untrusted import printable, shown

# Formats of the web; decoders of others are not offered to strangers.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_ADVICE = "send the file itself as data:image/png;base64,..."
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{0,20}):")


@dataclasses.dataclass(frozen=True)
class RemotePicture:
    """A picture that is to be fetched.

    Attributes:
      url: where it is, on a host that is allowed.
      param: the name of the field.
      pixels: uint8 [size, size, 3], what the model sees; black until it is fetched.
    """

    url: ImageUrl
    param: str
    pixels: np.ndarray


def remote_picture(
    url: str, hosts: Sequence[ImageHost], size: int, param: str
) -> RemotePicture | None:
    """The picture that is to be fetched; None for what `picture_of_url` is for.

    Args:
      url: of a request.
      hosts: from which pictures may be fetched; without any, none is.
      size: side of the model's input in pixels.
      param: the name of the field.

    Raises:
      ApiError: another kind of URL, or another host.
    """
    if not hosts or url[:5].lower() == "data:":
        return None
    parts = image_url(url)
    if parts is None:
        why = "but only https: URLs of the hosts that this server allows are fetched"
        raise unsupported_url(url, why, param)
    if not is_allowed(parts, hosts):
        what = f"is on a host, or a port, from which this server fetches nothing: {_ADVICE}"
        raise wrong_picture(param, what, "unsupported_url")
    return RemotePicture(parts, param, np.zeros((size, size, 3), np.uint8))


def picture_of_url(url: str, size: int, limits: Limits, param: str) -> np.ndarray:
    """The picture in a `data:` URL as the model sees it; see `picture_of_file`.

    Args:
      url: of a request. Nothing is fetched here, whatever it says.
      size, limits, param: see `picture_of_file`.

    Raises:
      ApiError: another kind of URL, bad base64, too large, or no picture.
    """
    return picture_of_file(_bytes_of(url, limits, param), size, limits, param)


def picture_of_file(data: bytes, size: int, limits: Limits, param: str) -> np.ndarray:
    """The picture in a file as the model sees it.

    It is brought to the model's size at once, so that requests that wait hold kilobytes.

    Args:
      data: the file.
      size: side of the model's input in pixels.
      limits: of bytes and pixels.
      param: the name of the field that brought it.

    Returns:
      uint8 [size, size, 3].

    Raises:
      ApiError: too large, or no picture.
    """
    if len(data) > limits.picture_bytes:
        raise too_large(limits, param)
    if not data:
        raise wrong_picture(param, "is empty", "invalid_picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: the check is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise wrong_picture(param, "has too many pixels", "picture_too_large") from None
    except Exception as error:  # Pillow raises many types for broken files
        listed = ", ".join(FORMATS)
        raise wrong_picture(
            param, f"is no picture that can be read ({listed})", "invalid_picture"
        ) from error
    with image:
        # The header alone says how much memory the pixels take.
        if image.width * image.height > limits.picture_pixels:
            most = limits.picture_pixels / 10**6
            raise wrong_picture(
                param,
                f"has {image.width}x{image.height} pixels, at most {most:g} megapixels are taken: make it smaller",
                "picture_too_large",
            )
        try:
            return understanding_pixels(load_image(image), size)
        except UserError as error:
            raise wrong_picture(param, f": {printable(error, 200)}", "invalid_picture") from error


def _bytes_of(url: str, limits: Limits, param: str) -> bytes:
    start = _DATA.match(url)
    if start is None:
        raise unsupported_url(url, "but pictures are not fetched", param)
    encoded = url[start.end() :]
    if len(encoded) > -(-limits.picture_bytes // 3) * 4:
        raise too_large(limits, param)
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise wrong_picture(param, f"is no base64: {printable(error)}", "invalid_base64") from error


def unsupported_url(url: str, why: str, param: str) -> ApiError:
    """The error of a URL that is not taken."""
    scheme = _SCHEME.match(url)
    name = scheme[1].lower() if scheme else ""
    what = f"is {name}:" if name and name != "data" else f"is {shown(url[:40])}"
    return wrong_picture(param, f"{what}, {why}: {_ADVICE}", "unsupported_url")


def too_large(limits: Limits, param: str) -> ApiError:
    """The error of a file of too many bytes."""
    most = limits.picture_bytes / 2**20
    return wrong_picture(param, f"has more than {most:g} MiB", "picture_too_large")


def wrong_picture(param: str, what: str, code: str) -> ApiError:
    """The error of a picture; `what` goes on after the name of its field."""
    return ApiError(f"{param} {what}".replace(" : ", ": "), param=param, code=code)


def png_bytes(picture: np.ndarray) -> bytes:
    """uint8 [h, w, 3] -> a PNG. The same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def png_base64(picture: np.ndarray) -> str:
    """uint8 [h, w, 3] -> a PNG in base64."""
    return base64.b64encode(png_bytes(picture)).decode("ascii")
