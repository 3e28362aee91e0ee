"""Pictures of records: bytes, names of files or places in an archive, which stay encoded until they are needed."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import io
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers import stores
from janus_jax.errors import UserError
from janus_jax.gcs import PREFIX, is_gcs
from janus_jax.processing import load_image

SUFFIXES = frozenset("jpg jpeg png webp gif bmp tif tiff avif jp2 ppm pgm pbm pnm".split())
_DATA = re.compile(r"data:[^,;]*(?:;[^,;]*)*,")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_BARE_BASE64 = 256  # letters from which on a text can be a picture instead of a name


class Unusable(Exception):
    """Why a record is no example; layouts turn it into `Rejected`."""

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, untrusted.printable(detail, 200)


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own."""

    path: str

    def __call__(self) -> np.ndarray:
        """uint8 [H, W, 3]; raises UserError."""
        return np.asarray(load_image(self.path))


@dataclasses.dataclass(frozen=True)
class PictureBytes:
    """An encoded picture: its bytes, or what has a method `read` that gives them."""

    data: Any

    def __call__(self) -> np.ndarray:
        """uint8 [H, W, 3]; raises UserError."""
        try:
            data = self.data if isinstance(self.data, bytes) else self.data.read()
        except OSError as error:
            raise UserError(f"cannot read the picture: {error.strerror or error}") from error
        return np.asarray(load_image(io.BytesIO(data)))


def find_picture(value: Any, roots: Sequence[str]) -> PictureFile | PictureBytes | np.ndarray:
    """The picture that a value of a record stands for; it is not opened.

    Args:
      value: encoded bytes, the name of a file, base64 with or without `data:`, a dict {bytes, path} as Hugging
        Face's `datasets` writes it, a dict with `url`, or pixels.
      roots: directories in which files are looked for, in this order, as `os.path.realpath` gives them.

    Raises:
      Unusable: there is no such picture, or it is where none may be read.
    """
    if isinstance(value, dict):
        value = _of_dict(value)
    if isinstance(value, bytes | bytearray | memoryview):
        if not len(value):
            raise Unusable(reasons.NO_PICTURE, "it has no bytes")
        return PictureBytes(bytes(value))
    if isinstance(value, str):
        return _of_text(value, roots)
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "read"):
        if not getattr(value, "size", 1):
            raise Unusable(reasons.NO_PICTURE, "it has no bytes")
        return PictureBytes(value)
    raise Unusable(reasons.NO_PICTURE, f"{type(value).__name__} where a picture should be")


def _of_dict(value: Mapping[str, Any]) -> Any:
    for name in ("bytes", "data", "base64", "path", "url", "file_name"):
        if value.get(name) is not None and value.get(name) != b"":
            found = value[name]
            return f"data:;base64,{found}" if name in ("data", "base64") else found
    raise Unusable(reasons.NO_PICTURE, f"none in {untrusted.shown(dict(value))}")


def _of_text(text: str, roots: Sequence[str]) -> PictureFile | PictureBytes:
    if not text.strip():
        raise Unusable(reasons.NO_PICTURE, "its name is empty")
    if found := _DATA.match(text[:256]):
        return _decoded(text[found.end() :], found[0].endswith("base64,"))
    if text.startswith("file://"):
        text = unquote(text[7:])
    elif found := _ADDRESS.match(text):
        raise Unusable(
            reasons.WEB_ADDRESS,
            f"{found[0]}...: download the pictures first, with img2dataset for example",
        )
    elif len(text) > _BARE_BASE64 and re.fullmatch(r"[A-Za-z0-9+/\s]+=*\s*", text):
        return _decoded(text, True)
    if any(is_gcs(root) for root in roots):
        return _find_object(text, roots)
    try:
        return PictureFile(find_file(text, roots))
    except Unusable:
        if "\\" not in text:
            raise
        return PictureFile(find_file(text.replace("\\", "/"), roots))  # written on Windows


def _find_object(name: str, roots: Sequence[str]) -> PictureFile | PictureBytes:
    """Like `find_file` where some roots are in buckets. Whether there is an object is asked where it matters."""
    outside = False
    for nth, root in enumerate(roots):
        if not is_gcs(root):
            with contextlib.suppress(Unusable):
                return PictureFile(find_file(name, [root]))
            continue
        place = PREFIX + posixpath.normpath(f"{root}/{name}".removeprefix(PREFIX))
        if not place.startswith(f"{root}/") or name.startswith("/"):
            outside = True
        elif nth == len(roots) - 1 or stores.matching(place):
            return PictureBytes(PictureObject(place))
    reason = reasons.PATH_ESCAPE if outside else reasons.PICTURE_MISSING
    raise Unusable(reason, f"{name!r} in {', '.join(roots)}")


@dataclasses.dataclass(frozen=True)
class PictureObject:
    """An encoded picture in a bucket."""

    path: str

    def read(self) -> bytes:
        """Raises OSError."""
        return stores.read_object(self.path)


def _decoded(text: str, is_base64: bool) -> PictureBytes:
    if not is_base64:
        raise Unusable(reasons.PICTURE_UNREADABLE, "a data: picture must be in base64")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable(reasons.PICTURE_UNREADABLE, f"wrong base64: {error}") from error
    if not data:
        raise Unusable(reasons.NO_PICTURE, "it has no bytes")
    return PictureBytes(data)


def find_file(name: str, roots: Sequence[str]) -> str:
    """The file of a name, in the first of the directories that has it, and never outside of all of them.

    A link in one of them may lead to another, as those of a Hub cache do.

    Raises:
      Unusable: in none, or outside.
    """
    outside = ""
    within = tuple(root if root.endswith(os.sep) else root + os.sep for root in roots)
    for root in roots:
        try:
            place = os.path.realpath(os.path.join(root, name))
            inside = place.startswith(within)
            if inside and os.path.isfile(place):
                return place
        except (OSError, ValueError) as error:  # such as a zero byte, or a very long name
            raise Unusable(reasons.PICTURE_MISSING, f"{name!r}: {error}") from error
        outside = outside if inside else place
    if outside:
        raise Unusable(reasons.PATH_ESCAPE, f"{name!r} is {outside!r}")
    raise Unusable(reasons.PICTURE_MISSING, f"{name!r} in {', '.join(roots) or 'no image_root'}")
