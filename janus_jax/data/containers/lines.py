"""Byte offsets in large text files, found without parsing them: lines, paragraphs, elements of a JSON array."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from janus_jax import untrusted
from janus_jax.data.containers.stores import open_to_read, size_of
from janus_jax.errors import UserError

_CHUNK = 2**22
_BOM = b"\xef\xbb\xbf"
_SPACE = np.zeros(256, bool)
_SPACE[list(b" \t\r\n\v\f")] = True

# What matters in JSON, besides backslashes: quotes, brackets, commas.
_QUOTE, _OPEN, _CLOSE, _COMMA = range(1, 5)
_KINDS = np.zeros(256, np.uint8)
for _characters, _kind in (
    (b'"', _QUOTE),
    (b"[{", _OPEN),
    (b"]}", _CLOSE),
    (b",", _COMMA),
):
    _KINDS[list(_characters)] = _kind


def content_start(path: str | os.PathLike) -> tuple[int, bytes]:
    """(offset, byte) of the first character that is neither a byte order mark nor space; b"" if none is."""
    with open_to_read(path) as file:
        if file.read(3) != _BOM:
            file.seek(0)
        while chunk := file.read(4096):
            if rest := chunk.lstrip():
                return file.tell() - len(rest), rest[:1]
    return size_of(path), b""


def line_offsets(path: str | os.PathLike) -> np.ndarray:
    """uint64 [N + 1]: where each line that is not blank begins, then the end of the file."""
    pieces, line = [], 0
    blank = True  # of the line that the last chunk left open
    for start, chunk in _chunks(path):
        breaks = np.flatnonzero(chunk == 10)
        rest = int(breaks[-1]) + 1 if len(breaks) else 0
        if len(breaks):
            begins = np.concatenate([[0], breaks[:-1] + 1])
            keep = ~_SPACE[chunk[begins]]
            for at in np.flatnonzero(~keep):  # few lines begin with space
                keep[at] = not _is_blank(chunk[begins[at] : breaks[at]])
            keep[0] |= not blank
            begins += start
            begins[0] = line
            pieces.append(begins[keep].astype(np.uint64))
            line, blank = start + rest, True
        blank = blank and _is_blank(chunk[rest:])
    if not blank:
        pieces.append(np.array([line], np.uint64))
    size = size_of(path)
    offsets = np.concatenate([*pieces, np.array([size], np.uint64)]).astype(np.uint64)
    if len(offsets) > 1 and offsets[0] == 0:
        offsets[0] = content_start(path)[0]  # after a byte order mark
    return offsets


def _is_blank(chunk: np.ndarray) -> bool:
    return bool(_SPACE[chunk].all())


def paragraph_offsets(path: str | os.PathLike) -> np.ndarray:
    """uint64 [N + 1]: where each run of lines between blank ones begins, then the end of the file."""
    lines = line_offsets(path)
    starts = lines[:-1]
    if len(starts) < 2:
        return lines
    first = np.zeros(len(starts), bool)
    first[0] = True
    # Between two lines that follow each other there is one line break, and after a blank line more.
    with open_to_read(path) as file:
        for begin in range(1, len(starts), 65536):
            end = min(begin + 65536, len(starts))
            low, high = int(starts[begin - 1]), int(starts[end - 1])
            file.seek(low)
            data = np.frombuffer(file.read(high - low), np.uint8)
            breaks = np.cumsum(np.concatenate([[0], data == 10]))
            at = starts[begin - 1 : end].astype(np.int64) - low
            first[begin:end] = np.diff(breaks[at]) > 1
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
        hidden = _escaped(chunk, escaped)
        escaped = bool(len(hidden)) and int(hidden[-1]) == len(chunk)
        kinds[hidden[: len(hidden) - escaped]] = 0
        where = np.flatnonzero(kinds)
        kind = kinds[where]
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


def _escaped(chunk: np.ndarray, first: bool) -> np.ndarray:
    """Ascending offsets of the characters that follow a backslash that counts; `first` is one of them."""
    slashes = np.flatnonzero(chunk == 92)
    if first:
        slashes = slashes[slashes > 0]
    if not len(slashes):
        return np.zeros(int(first), np.int64)
    # In a run of backslashes every other one is itself escaped.
    new_run = np.concatenate([[True], np.diff(slashes) != 1])
    order = np.arange(len(slashes))
    in_run = order - np.maximum.accumulate(np.where(new_run, order, 0))
    return np.concatenate([np.zeros(int(first), np.int64), slashes[in_run % 2 == 0] + 1])


def _check_end(path: str | os.PathLike, offset: int) -> None:
    with open_to_read(path) as file:
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
    with open_to_read(path) as file:
        file.seek(int(offsets[0]))
        text = file.read(int(offsets[1] - offsets[0]) - 1)
    return offsets if text.strip() else offsets[:1]


def _chunks(path: str | os.PathLike, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    with open_to_read(path) as file:
        file.seek(start)
        while data := file.read(_CHUNK):
            yield start, np.frombuffer(data, np.uint8)
            start += len(data)
