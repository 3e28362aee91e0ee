"""Byte offsets in large text files, found without parsing them: lines, paragraphs, elements of a JSON array."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError

_CHUNK = 2**22
_BOM = b"\xef\xbb\xbf"
_SPACE = np.zeros(256, bool)
_SPACE[list(b" \t\r\n\v\f")] = True

# What matters in JSON: quotes, backslashes, brackets, commas.
_QUOTE, _BACKSLASH, _OPEN, _CLOSE, _COMMA = range(1, 6)
_KINDS = np.zeros(256, np.uint8)
for _characters, _kind in (
    (b'"', _QUOTE),
    (b"\\", _BACKSLASH),
    (b"[{", _OPEN),
    (b"]}", _CLOSE),
    (b",", _COMMA),
):
    _KINDS[list(_characters)] = _kind


def content_start(path: str | os.PathLike) -> tuple[int, bytes]:
    """(offset, byte) of the first character that is neither a byte order mark nor space; b"" if none is."""
    with open(path, "rb") as file:
        if file.read(3) != _BOM:
            file.seek(0)
        while chunk := file.read(4096):
            if rest := chunk.lstrip():
                return file.tell() - len(rest), rest[:1]
    return os.path.getsize(path), b""


def line_offsets(path: str | os.PathLike) -> np.ndarray:
    """uint64 [N + 1]: where each line that is not blank begins, then the end of the file."""
    pieces, line = [], 0
    blank = True  # of the line that the last chunk left open
    for start, chunk in _chunks(path):
        breaks = np.flatnonzero(chunk == 10)
        begins = np.concatenate([[line], breaks[:-1] + start + 1]) if len(breaks) else []
        # A line is blank if no character in it, up to its end, is anything else than space.
        filled = np.concatenate([[0], np.cumsum(~_SPACE[chunk])])
        if len(breaks):
            counts = np.diff(filled[np.concatenate([[0], breaks + 1])])
            keep = counts > 0
            keep[0] |= not blank
            pieces.append(np.asarray(begins, np.uint64)[keep])
            line = start + int(breaks[-1]) + 1
            blank = filled[-1] == filled[breaks[-1] + 1]
        else:
            blank = blank and not filled[-1]
    if not blank:
        pieces.append(np.array([line], np.uint64))
    size = os.path.getsize(path)
    offsets = np.concatenate([*pieces, np.array([size], np.uint64)]).astype(np.uint64)
    if len(offsets) > 1 and offsets[0] == 0:
        offsets[0] = content_start(path)[0]  # after a byte order mark
    return offsets


def paragraph_offsets(path: str | os.PathLike) -> np.ndarray:
    """uint64 [N + 1]: where each run of lines between blank ones begins, then the end of the file."""
    lines = line_offsets(path)
    starts = lines[:-1]
    if len(starts) < 2:
        return lines
    first = np.zeros(len(starts), bool)
    first[0] = True
    # Between two lines that follow each other there is one line break, and after a blank line more.
    with open(path, "rb") as file:
        data = np.memmap(file, np.uint8, "r")
        for begin in range(1, len(starts), 65536):
            end = min(begin + 65536, len(starts))
            low, high = int(starts[begin - 1]), int(starts[end - 1])
            breaks = np.cumsum(np.concatenate([[0], data[low:high] == 10]))
            at = starts[begin - 1 : end].astype(np.int64) - low
            first[begin:end] = np.diff(breaks[at]) > 1
        del data
    return np.concatenate([starts[first], lines[-1:]])


def array_offsets(path: str | os.PathLike, start: int) -> np.ndarray:
    """uint64 [N + 1]: where each element of a JSON array begins, then one byte after the closing bracket.

    Element i is what lies from offset i to offset i + 1, less one character, a comma or the bracket.

    Args:
      path: of the file.
      start: offset of the opening bracket.

    Raises:
      UserError: the array does not end, or something follows it.
    """
    pieces = [np.array([start + 1], np.uint64)]
    depth = 0  # brackets that are open
    inside = escaped = False  # a string; the next character is one after a backslash
    for at, chunk in _chunks(path, start):
        kinds = _KINDS[chunk]
        if escaped:
            kinds[0] = 0
        where = np.flatnonzero(kinds)
        kind = kinds[where]
        escaped, kind = _without_escaped(where, kind, len(chunk), escaped)
        quotes = np.cumsum(kind == _QUOTE) + inside
        outside = (quotes & 1) == 0
        if len(quotes):
            inside = bool(quotes[-1] & 1)
        step = (kind == _OPEN).astype(np.int64) - (kind == _CLOSE)
        depths = depth + np.cumsum(np.where(outside, step, 0))
        end = np.flatnonzero((depths == 0) & outside & (kind == _CLOSE))
        limit = end[0] if len(end) else len(kind)
        commas = (kind[:limit] == _COMMA) & outside[:limit] & (depths[:limit] == 1)
        pieces.append((where[:limit][commas] + at + 1).astype(np.uint64))
        if len(end):
            close = int(where[limit]) + at
            _check_end(path, close + 1)
            offsets = np.concatenate([*pieces, np.array([close + 1], np.uint64)])
            return _without_empty_last(path, offsets)
        if len(depths):
            depth = int(depths[-1])
    raise UserError(
        f"{untrusted.printable(path, 200)} ends in the middle of its JSON array: copy it again"
    )


def _without_escaped(
    where: np.ndarray, kind: np.ndarray, length: int, escaped: bool
) -> tuple[bool, np.ndarray]:
    """(whether the chunk ends in a backslash that counts, the kinds without quotes after such)."""
    slashes = where[kind == _BACKSLASH]
    if not len(slashes):
        return False, kind
    new_run = np.concatenate([[True], np.diff(slashes) != 1])
    order = np.arange(len(slashes))
    in_run = order - np.maximum.accumulate(np.where(new_run, order, 0))
    active = slashes[in_run % 2 == 0]
    hidden = np.isin(where, active + 1) & (kind == _QUOTE)
    return bool(active[-1] == length - 1), np.where(hidden, 0, kind)


def _check_end(path: str | os.PathLike, offset: int) -> None:
    with open(path, "rb") as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK):
            if chunk.strip():
                raise UserError(
                    f"{untrusted.printable(path, 200)} holds more than one JSON array: make it one, or write "
                    "one record a line"
                )


def _without_empty_last(path: str | os.PathLike, offsets: np.ndarray) -> np.ndarray:
    """An array without elements has one piece of space between its brackets."""
    if len(offsets) > 2:
        return offsets
    with open(path, "rb") as file:
        file.seek(int(offsets[0]))
        text = file.read(int(offsets[1] - offsets[0]) - 1)
    return offsets if text.strip() else offsets[:1]


def _chunks(path: str | os.PathLike, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    with open(path, "rb") as file:
        file.seek(start)
        while data := file.read(_CHUNK):
            yield start, np.frombuffer(data, np.uint8)
            start += len(data)
