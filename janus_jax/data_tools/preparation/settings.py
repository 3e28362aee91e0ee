"""What a prepared source depends on, so that a preparation goes on only as it was begun."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import janus_jax
from janus_jax.data.formats import FileSource
from janus_jax.data.manifest import ManifestSource
from janus_jax.processing import ProcessorConfig

_PATHS = ("path", "image_root")


def settings_of(
    source: ManifestSource,
    examples: FileSource,
    base: Path,
    sizes: ProcessorConfig,
    pictures: str,
    codes: Mapping[str, Any],
    records: int,
    shard_records: int,
) -> dict[str, Any]:
    """JSON-ready: the data, its options, what becomes of its pictures, and the libraries that do it.

    Args:
      source: of the manifest.
      examples: that it gives.
      base: directory of the manifest; paths are kept relative to it, so that both can be moved together.
      sizes: of the model's pictures.
      pictures: of `records`: what is kept of them.
      codes: which image tokenizer computes them, and how; {} where none does.
      records: that are read.
      shard_records: of these in a shard.
    """
    versions = {name: importlib.metadata.version(name) for name in ("pillow", "array_record")}
    if codes:
        versions |= {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return {
        "task": source.task,
        "options": _options(source.options, base),
        "files": examples.fingerprint,
        "records": records,
        "shard_records": shard_records,
        "pictures": pictures,
        "und_image_size": sizes.und_image_size,
        "gen_image_size": sizes.gen_image_size,
        "codes": dict(codes),
        "versions": {"janus_jax": janus_jax.__version__} | versions,
    }


def _options(options: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Options as they are compared: with relative paths, and the content of a file of class names."""
    found = {
        key: _relative(value, base) if key in _PATHS else value for key, value in options.items()
    }
    names = options.get("class_names")
    if isinstance(names, str) and os.path.isfile(names):
        found["class_names"] = hashlib.sha256(Path(names).read_bytes()).hexdigest()[:16]
    return json.loads(json.dumps(found, default=str))


def _relative(value: Any, base: Path) -> Any:
    if not isinstance(value, str):
        return [_relative(part, base) for part in value]
    return os.path.relpath(value, base) if os.path.isabs(value) else value
