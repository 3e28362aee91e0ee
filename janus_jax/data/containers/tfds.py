"""Datasets of TensorFlow Datasets, by name or directory, through `as_data_source`: without TensorFlow."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.data import reasons
from janus_jax.data.containers.base import Record, missing_package
from janus_jax.data.examples import Rejected
from janus_jax.errors import UserError, nearest


class Tfds:
    """The records of a split. Pictures stay encoded, classes are their names, texts are str.

    Args:
      name: such as "coco_captions/2014:1.1.0"; "" where `path` is the directory of a dataset.
      path: the directory in which datasets are (`data_dir`), or of one dataset; None is TFDS's own.
      split: such as "train" or "train[:10%]".

    Raises:
      UserError: tensorflow-datasets is not installed; no such dataset or split; not prepared, or as TFRecord,
        which only TensorFlow reads.
    """

    def __init__(self, name: str, path: str | None = None, split: str = "train"):
        self._arguments = (name, path, split)
        self._shown = name or str(path)
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise missing_package(
                "tensorflow-datasets", "tfds", f"tfds:{untrusted.printable(self._shown)}"
            ) from error
        builder = self._builder(tfds, name, path)
        splits = list(builder.info.splits)
        plain = split.partition("[")[0]
        if "+" not in split and plain not in splits:
            raise UserError(
                f"tfds:{self._shown} has no split {plain!r} ({', '.join(splits) or 'none is prepared'})."
                f"{nearest(plain, splits)}"
            )
        decoders, self._class_names = _skipped(tfds, builder.info.features)
        self._pictures = set(decoders)
        try:
            self._source = builder.as_data_source(split=split, decoders=decoders)
            length = len(self._source)
        except NotImplementedError as error:
            raise UserError(
                f"tfds:{self._shown} is stored as TFRecord, which has no random access: prepare it again with "
                f"tfds build {name} --file_format=array_record"
            ) from error
        except Exception as error:  # of many types
            raise UserError(
                f"tfds:{self._shown} cannot be read: {untrusted.printable(error, 200)}"
            ) from error
        if not length:
            raise UserError(f"tfds:{self._shown}, split {split}, holds no record")
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record | Rejected:
        try:
            with self._lock:
                record = self._source[index]
        except Exception as error:  # of many types, all of this record
            return Rejected(reasons.CANNOT_READ, untrusted.printable(error))
        try:
            record = {
                name: value if name in self._pictures else _plain(value)
                for name, value in record.items()
            }
        except UnicodeDecodeError:
            return Rejected(reasons.NOT_UTF8)
        for name, names in self._class_names.items():
            if isinstance(record.get(name), int):
                number = record[name]
                record[name] = names[number] if 0 <= number < len(names) else None
        return record

    def describe(self, index: int) -> str:
        return f"tfds:{self._shown}, {self._arguments[2]}, record {index + 1}"

    def __reduce__(self):
        return Tfds, self._arguments

    def _builder(self, tfds: Any, name: str, path: str | None) -> Any:
        try:
            if name:
                return tfds.builder(name, data_dir=path, file_format=None)
            return tfds.builder_from_directory(os.fspath(path))
        except Exception as error:  # of many types, with texts of many lines
            reason = untrusted.printable(" ".join(str(error).split()), 200)
            raise UserError(f"there is no dataset tfds:{self._shown}: {reason}") from error


def _skipped(tfds: Any, features: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Decoders that leave pictures encoded, and field -> names of its classes, of the outermost fields."""
    decoders, names = {}, {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            decoders[name] = tfds.decode.SkipDecoding()
        elif isinstance(feature, tfds.features.ClassLabel) and feature.names:
            names[name] = list(feature.names)
    return decoders, names


def _plain(value: Any) -> Any:
    """Texts as str, numbers as Python's, lists of both; pixels as they are."""
    if isinstance(value, bytes | np.bytes_):
        return value.decode("utf-8")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return [_plain(each) for each in value.tolist()]
        return value.item() if value.ndim == 0 else value
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
