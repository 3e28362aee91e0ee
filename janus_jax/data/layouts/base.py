"""What all layouts share: options, what is drawn for a record, texts and pictures of its fields."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import Record
from janus_jax.data.examples import Example, Rejected
from janus_jax.data.pictures import Unusable, find_picture

_T = TypeVar("_T")

# Where a picture is, in the order in which fields are tried; those for several come last.
PICTURES = tuple(
    "image img picture image_path img_path file_name filepath image_bytes output_image "
    "image_file path images pictures".split()
)
ADDRESSES = ("image_url", "url", "URL", "image_urls")
# Where the words of a caption or prompt are.
CAPTIONS = tuple(
    "caption captions text texts txt prompt description title text_en re_caption long_caption "
    "short_caption recaption caption_title_and_reference_description TEXT Caption".split()
)
TEXTS = ("text", "content", "document", "raw_content", "txt", "article")
CLASSES = ("class_name", "label", "class", "category", "fine_label", "coarse_label", "cls")


@dataclasses.dataclass(frozen=True)
class LayoutOptions:
    """How records of a source are read.

    Attributes:
      task: of `data.examples.TASKS` or `STAGE_0_TASKS`.
      roots: directories of pictures that are named in records, real paths.
      prompt: of a generation task, a template in which {name} is a field of the record, and {caption} or
        {class} the words; of an understanding task, the question that a caption or class answers. One of
        several is drawn. None: the layout's own.
      system: instead of the checkpoint's system prompt, where a record has none.
      image_field, caption_field: fields, `a.b` for one inside another; () means the usual names. Of several
        captions one is drawn.
      first_sentence: probability that a caption is cut after its first sentence.
      class_names: id -> name.
      min_rating: least rating of an answer, for all kinds of ratings or {kind: rating}.
    """

    task: str = "und"
    roots: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    system: str | None = None
    image_field: tuple[str, ...] = ()
    caption_field: tuple[str, ...] = ()
    first_sentence: float = 0.0
    class_names: Mapping[str, str] | None = None
    min_rating: float | Mapping[str, float] | None = None

    @property
    def draws_pictures(self) -> bool:
        return self.task not in ("und", "text")


class Draws:
    """Random choices of one record, always the same for a seed and an index; made when first needed."""

    def __init__(self, seed: int, index: int):
        self._of = (seed, index)
        self._rng: np.random.Generator | None = None

    def random(self) -> float:
        if self._rng is None:
            self._rng = np.random.default_rng(self._of)
        return float(self._rng.random())

    def choice(self, values: Sequence[_T]) -> _T:
        """One of the values; nothing is drawn where there is one only."""
        return values[0] if len(values) == 1 else values[int(self.random() * len(values))]


Layout = Callable[[Record, LayoutOptions, Draws], Example | Rejected]


def layout(read: Callable[[Record, LayoutOptions, Draws], Example]) -> Layout:
    """A layout that gives `Rejected` for what `read` cannot use, and for values of types it does not expect."""

    @functools.wraps(read)
    def checked(record: Record, options: LayoutOptions, draws: Draws) -> Example | Rejected:
        try:
            return read(record, options, draws)
        except Unusable as error:
            return Rejected(error.reason, error.detail)
        except OSError as error:
            return Rejected(reasons.CANNOT_READ, error.strerror or untrusted.printable(error))
        except untrusted.SENSELESS as error:
            kind = type(error).__name__
            return Rejected(reasons.FORM, f"{kind}: {untrusted.printable(error, 150)}")

    return checked


def field(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, of `a.b` the one inside of a value; None if there is none."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def fields_of(record: Mapping[str, Any]) -> str:
    """The names of a record's fields, for who must see which one image_field or caption_field should name."""
    return f"its fields are {untrusted.shown(list(record), 120)}"


def words(value: Any, reason: str = reasons.EMPTY_TEXT) -> str:
    """A text as it can become tokens: not empty, and without halves of characters.

    Raises:
      Unusable: for `reason` where it is empty, or it is no text.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "strict") if _is_utf8(value) else "\ud800"
    if value is None:
        raise Unusable(reason)
    if not isinstance(value, str):
        raise Unusable(reasons.FORM, f"{type(value).__name__} where a text should be")
    if not value.isascii() and not _is_whole(value):
        raise Unusable(reasons.NOT_UTF8, "half a character")
    text = value.strip()
    if not text:
        raise Unusable(reason)
    return text


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_list(value: Any) -> list[Any]:
    """Lists as they are, nothing as an empty one, a single value as a list of it."""
    if value is None or value == "":
        return []
    if isinstance(value, np.ndarray) and (value.dtype == object or value.ndim == 1):
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else [value]


def pictures_of(record: Record, options: LayoutOptions) -> list[Any]:
    """The encoded pictures of a record; none if it has none.

    Raises:
      Unusable: one that cannot be found, or it has addresses in the web only.
    """
    for name in options.image_field or PICTURES:
        values = [value for value in as_list(field(record, name)) if value is not None]
        if values:
            return [find_picture(value, options.roots) for value in values]
    for name in () if options.image_field else ADDRESSES:
        for value in as_list(record.get(name)):
            find_picture(value, options.roots)  # says what to do about an address
    return []


def one_picture(record: Record, options: LayoutOptions) -> Any:
    """The picture of a record that has one; raises Unusable if it has none or several."""
    found = pictures_of(record, options)
    if len(found) != 1:
        if not found:
            raise Unusable(reasons.NO_PICTURE, f"0 instead of 1; {fields_of(record)}")
        raise Unusable(reasons.FORM, f"{len(found)} instead of 1")
    return found[0]


_NAMED = re.compile(r"\{([^{}]*)\}")


def fields_of_template(template: str) -> list[str]:
    return _NAMED.findall(template)


def filled(template: str, record: Mapping[str, Any], **given: str) -> str:
    """`template` with {name} as it is in `given`, else in the record."""

    def value(found: re.Match) -> str:
        name = found[1]
        return given[name] if name in given else words(field(record, name), reasons.EMPTY_TEXT)

    return _NAMED.sub(value, template)
