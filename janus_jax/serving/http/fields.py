"""The fields of a JSON object, taken one by one: what is left over is refused, never ignored."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from janus_jax.errors import nearest
from janus_jax.serving.http.errors import ApiError
from janus_jax.untrusted import printable, shown

SEEDS = 2**32
# Of a body, so that one of many tiny values does not become gigabytes of objects. Base64 has none of these.
_MARKS = 400_000


def parse_json(data: bytes) -> Any:
    """The value of a body.

    Raises:
      ApiError: it is no JSON in UTF-8, has a name twice, NaN, too many values, or is nested too deeply.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > _MARKS:
        raise ApiError("the body has too many values", 400, code="invalid_json")
    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "its values are nested too deeply" if isinstance(error, RecursionError) else error
        raise ApiError(
            f"the body is no JSON: {printable(why, 200)}", 400, code="invalid_json"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the field {shown(name)} is there twice")
        values[name] = value
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


class Fields:
    """An object of a request. A field that is null counts as not given.

    Args:
      value: what should be an object.
      where: its name in messages, "" for the whole body.

    All methods raise ApiError with the name of the field.
    """

    def __init__(self, value: Any, where: str = ""):
        if not isinstance(value, dict):
            raise ApiError(
                f"{where or 'the body'} must be an object, not {_kind(value)}",
                param=where or None,
                code="invalid_type",
            )
        self._left, self._where, self._known = dict(value), where, []

    def name(self, field: str) -> str:
        """The whole name of a field, such as `messages[0].role`."""
        return f"{self._where}.{field}" if self._where else field

    def wrong(self, field: str, what: str, code: str = "invalid_value") -> ApiError:
        """The error of one field; `what` goes on after its name."""
        name = self.name(field)
        return ApiError(f"{name} {what}", param=name, code=code)

    def any(self, field: str, required: bool = False) -> Any:
        """The value, whatever it is."""
        self._known.append(field)
        value = self._left.pop(field, None)
        if value is None and required:
            raise self.wrong(field, "is missing", "missing_field")
        return value

    def text(self, field: str, most: int, required: bool = False) -> str | None:
        """A text of at most `most` letters that can be written as UTF-8."""
        value = self.any(field, required)
        return None if value is None else self.as_text(field, value, most)

    def as_text(self, field: str, value: Any, most: int) -> str:
        """`text`, of a value that was taken before."""
        if not isinstance(value, str):
            raise self.wrong(field, f"must be a text, not {_kind(value)}", "invalid_type")
        if len(value) > most:
            raise self.wrong(field, f"has {len(value)} letters, at most {most} are taken")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.wrong(field, "has half of a character (a lone surrogate)") from None
        return value

    def choice(self, field: str, options: Collection[str], required: bool = False) -> str | None:
        """One of some words."""
        value = self.text(field, 10**6, required)
        if value is not None and value not in options:
            listed = " or ".join(options)
            raise self.wrong(
                field, f"must be {listed}, not {shown(value)}.{nearest(value[:100], options)}"
            )
        return value

    def flag(self, field: str) -> bool:
        """True or false; false if not given."""
        value = self.any(field)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(field, f"must be true or false, not {_kind(value)}", "invalid_type")
        return bool(value)

    def whole(self, field: str, least: int, most: int) -> int | None:
        """A whole number from `least` to `most`."""
        value = self.any(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(field, f"must be a whole number, not {_kind(value)}", "invalid_type")
        if not least <= value <= most:
            raise self.wrong(field, f"must be from {least} to {most}, not {shown(value)}")
        return value

    def number(self, field: str, most: float, above_zero: bool = False) -> float | None:
        """A number from 0 to `most`, which is finite, or above 0."""
        value = self.any(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(field, f"must be a number, not {_kind(value)}", "invalid_type")
        low = "above 0 and at most" if above_zero else "from 0 to"
        if not 0 <= value <= most or (above_zero and not value):
            raise self.wrong(field, f"must be {low} {most:g}, not {shown(value)}")
        return float(value)

    def only(self, field: str, values: Collection[Any], why: str) -> Any:
        """One of `values`, which ask for what is done anyway; `why` is for who wants something else."""
        value = self.any(field)
        # A boolean of Python equals a number, one of JSON does not.
        if value is not None and not any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in values
        ):
            listed = " or ".join(json.dumps(known).strip('"') for known in values)
            raise self.wrong(field, f"must be {listed}: {why}", "unsupported_value")
        return value

    def end(self) -> None:
        """Refuses what no method has asked for, unless it is null."""
        for field in (name for name, value in self._left.items() if value is not None):
            near = nearest(field[:100], self._known)
            name = self.name(printable(field))
            raise ApiError(f"{name} is not supported.{near}", param=name, code="unsupported_field")


def _kind(value: Any) -> str:
    """The type of a value in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
