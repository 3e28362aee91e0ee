"""ArrayRecord files, whose records are JSON, MessagePack or TensorFlow's Example; TensorFlow is not needed."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import Record, check_file, missing_package
from janus_jax.data.containers.json_lines import parse_object
from janus_jax.data.examples import Rejected
from janus_jax.errors import UserError


class ArrayRecord:
    """The records of a file, each one an object.

    Args:
      path: of the file.

    Raises:
      UserError: array_record is not installed; no such file, no ArrayRecord file, or no record.
    """

    OPEN = 64

    def __init__(self, path: str | os.PathLike):
        try:
            from array_record.python import array_record_data_source
        except ImportError as error:
            raise missing_package(
                "array_record", "array_record", "reading ArrayRecord files"
            ) from error
        check_file(path)
        self._path = os.fspath(path)
        try:
            self._source = array_record_data_source.ArrayRecordDataSource([self._path])
            length = len(self._source)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"{untrusted.printable(path, 200)} is not a whole ArrayRecord file: "
                f"{untrusted.printable(error)}"
            ) from error
        if not length:
            raise UserError(f"{untrusted.printable(path, 200)} holds no record")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record | Rejected:
        try:
            data = self._source[index]
        except (RuntimeError, ValueError, OSError) as error:
            return Rejected(reasons.CANNOT_READ, untrusted.printable(error))
        return parse_record(data)

    def describe(self, index: int) -> str:
        return f"{self._path}, record {index + 1}"

    def __reduce__(self):
        return ArrayRecord, (self._path,)


def parse_record(data: bytes) -> Record | Rejected:
    """The fields of a record: of a JSON object, a MessagePack map, or a TensorFlow Example."""
    if data.lstrip()[:1] == b"{":
        return parse_object(data)
    if data[:1] and (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)):
        import msgpack  # flax needs it, so it is there

        try:
            value = msgpack.unpackb(data)
        except (ValueError, msgpack.UnpackException) as error:
            return Rejected(reasons.CANNOT_READ, f"MessagePack: {untrusted.printable(error)}")
        return value if isinstance(value, dict) else Rejected(reasons.FORM, "no map")
    try:
        return _example(data)
    except (ValueError, IndexError, struct.error) as error:
        return Rejected(
            reasons.FORM,
            f"neither JSON nor MessagePack nor a TensorFlow Example ({untrusted.printable(error)})",
        )


def _example(data: bytes) -> Record:
    """Fields of a serialized `tf.train.Example`: Example{1: Features{1: map<string, Feature>}}.

    Source: tensorflow/core/example/{example,feature}.proto. A list of one value is that value.
    """
    record: Record = {}
    for number, features in _fields(data):
        if number != 1:
            raise ValueError(f"field {number}")
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            values = [v for kind, part in _fields(parts.get(2, b"")) for v in _values(kind, part)]
            record[parts[1].decode("utf-8")] = values[0] if len(values) == 1 else values
    if not record:
        raise ValueError("it has no features")
    return record


def _values(kind: int, data: bytes) -> list[Any]:
    """Of a Feature: 1 bytes_list, 2 float_list, 3 int64_list, the numbers packed or not."""
    values: list[Any] = []
    for _, part in _fields(data):
        if kind == 1:
            values.append(part)
        elif kind == 2:
            values += struct.unpack(f"<{len(part) // 4}f", part)
        elif isinstance(part, int):
            values.append(part)
        else:
            at = 0
            while at < len(part):
                number, at = _varint(part, at)
                values.append(number - 2**64 if number >= 2**63 else number)
    return values


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protocol buffer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if tag & 7 == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(tag & 7, -1)
        if size < 0 or at + size > len(data):
            raise ValueError("it is cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is too long")
