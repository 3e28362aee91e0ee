"""Writing an opened model: to a native directory, or to one that PyTorch programs read.

All build the directory somewhere else and move it at the end (`output_dir.py`); what is interrupted never loads.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from janus_jax.checkpoints import LazyArray, abridged, foreign_parts, save_model, storage
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.files import atomic_write
from janus_jax.interop.configs.hf import config_to_hf
from janus_jax.interop.configs.official import config_to_official
from janus_jax.interop.configs.processor import processor_files
from janus_jax.interop.conversion.convert import nest, to_torch
from janus_jax.interop.conversion.lazy import save_lazily
from janus_jax.interop.conversion.names import TABLES, NameTable
from janus_jax.interop.conversion.output_dir import check_output_dir, contents, write_output_dir
from janus_jax.interop.conversion.source import NATIVE, Source, is_native
from janus_jax.processing import ProcessorConfig, Tokenizer

SHARD_BYTES = 2 * 10**9

# Called with the bytes of every array as it is done.
Progress = Callable[[int], None]


def write_model(
    source: Source,
    directory: Path,
    to: str,
    processor: ProcessorConfig,
    tokenizer: Tokenizer,
    progress: Progress = lambda _: None,
) -> None:
    """Writes a model in the format `to`: "janus_jax", "official" or "hf"; see the functions below."""
    if to == NATIVE:
        write_native(source, directory, processor, tokenizer, progress)
    else:
        write_torch(source, directory, TABLES[to], processor, tokenizer, progress)


def write_native(
    source: Source,
    directory: Path,
    processor: ProcessorConfig,
    tokenizer: Tokenizer,
    progress: Progress = lambda _: None,
) -> None:
    """Writes a native model directory, array by array; an earlier one is replaced if nothing else is there.

    Raises:
      UserError: a value is not finite, the place is taken by something else or cannot be written, or the
        disk is full; nothing is left.
    """

    def save(path: Path, tree: Any) -> None:
        save_lazily(path, tree)
        source.check_finite()  # before the directory gets its name

    with write_output_dir(directory, may_be_replaced) as new, _space(directory, source):
        save_model(
            new,
            source.config,
            processor.to_dict(),
            tokenizer.to_json(),
            nest(_watched(source.arrays, progress)),
            origin=origin_of(source),
            save=save,
        )


def origin_of(source: Source) -> dict[str, str]:
    """What `janus.json` says about where a converted model comes from."""
    origin = {"from": str(source.directory), "format": source.format}
    return origin | ({"adapter": source.adapter} if source.adapter else {})


def write_torch(
    source: Source,
    directory: Path,
    table: NameTable,
    processor: ProcessorConfig,
    tokenizer: Tokenizer,
    progress: Progress = lambda _: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes safetensors with the config, processor and tokenizer files of a PyTorch format.

    Args:
      source: what to write.
      directory: the new directory; it must not exist or be empty.
      table: the format, `names.OFFICIAL` or `names.HF`.
      processor, tokenizer: of the model.
      progress: called with the bytes of every array.
      shard_bytes: a file takes no further tensor once it has this many bytes.

    Raises:
      UserError: the format cannot express the model, a value is not finite, the place is taken, or the
        disk is full; nothing is left.
    """
    check_output_dir(directory)
    dtypes = {array.dtype.name for array in source.arrays.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    config = _config(source.config, table, tokenizer, dtype)
    with write_output_dir(directory) as new, _space(directory, source):
        new.mkdir()
        files = {"config.json": json.dumps(config, indent=2)}
        files |= processor_files(source.config, processor, tokenizer, table.key)
        for name, text in files.items():
            atomic_write(new / name, text + "\n")
        _write_shards(source, new, table, progress, shard_bytes)
        source.check_finite()


def may_be_replaced(directory: Path) -> bool:
    """Whether it holds a native model and nothing that anybody else put there; a training run may not be.

    Raises:
      UserError: beside a model there is something else; it is named.
    """
    if not is_native(directory):
        return False
    if foreign := foreign_parts(directory, contents(directory)):
        raise UserError(
            f"cannot write to {directory}: it holds {abridged(foreign)}, which this program did not write "
            "and would delete; move it, or choose another place"
        )
    return True


def check_destination(source: str | Path, directory: str | Path, to: str) -> None:
    """Checks, before anything is downloaded or computed, that `write_model` can write to a directory.

    Raises:
      UserError: it lies in the model that is read, is taken by something else, or cannot be written.
    """
    check_apart(source, directory)
    check_output_dir(directory, may_be_replaced if to == NATIVE else None)


def check_apart(source: str | Path, directory: str | Path) -> None:
    """Raises UserError if what is written to a directory would lie in the model that it is made of."""
    target = Path(os.path.realpath(directory))
    if not os.path.isdir(source):
        return
    for place in (target, *target.parents):
        if os.path.exists(place) and place.samefile(source):
            which = "is" if place == target else "is inside of"
            raise UserError(
                f"cannot write to {directory}: it {which} {source}, the model that is read; choose another place"
            )


def summary(arrays: Mapping[str, LazyArray]) -> list[tuple[str, int, int]]:
    """(sub-module, parameters, bytes) for each top-level group, and the total."""
    groups: dict[str, list[int]] = {}
    for path, array in arrays.items():
        group = groups.setdefault(path.split("/")[0], [0, 0])
        group[0] += array.size
        group[1] += array.nbytes
    rows = [(name, *numbers) for name, numbers in groups.items()]
    return [*rows, ("total", sum(r[1] for r in rows), sum(r[2] for r in rows))]


def _space(directory: Path, source: Source) -> AbstractContextManager[None]:
    """Names the place, not what is built for it, where the disk is too small or gets full."""
    place = Path(os.path.realpath(directory))
    return storage.writing(place, "nothing there was changed", dict(source.arrays))


def _watched(arrays: Mapping[str, LazyArray], progress: Progress) -> dict[str, LazyArray]:
    def watch(array: LazyArray) -> LazyArray:
        def load() -> np.ndarray:
            value = array.load()
            progress(array.nbytes)
            return value

        return dataclasses.replace(array, load=load)

    return {path: watch(array) for path, array in arrays.items()}


def _config(
    config: JanusConfig, table: NameTable, tokenizer: Tokenizer, dtype: str
) -> dict[str, Any]:
    if table.key == "hf":
        return config_to_hf(config, tokenizer.image_id, dtype)
    return config_to_official(config, dtype)


def _write_shards(
    source: Source, directory: Path, table: NameTable, progress: Progress, shard_bytes: int
) -> None:
    arrays = _watched(source.arrays, progress)
    groups = list(_groups(arrays, shard_bytes))
    listed: dict[str, str] = {}
    for i, paths in enumerate(groups):
        name = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        name = name if len(groups) > 1 else "model.safetensors"
        state: dict[str, np.ndarray] = {}
        for path in paths:
            state |= to_torch(path, arrays[path].load(), table)
        try:
            save_file(state, directory / name, metadata={"format": "pt"})
        except SafetensorError as error:  # no OSError, not even if the disk is full
            raise OSError(str(error)) from error
        listed |= dict.fromkeys(state, name)
    if len(groups) > 1:
        total = sum(array.nbytes for array in arrays.values())
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        text = json.dumps(index, indent=2, sort_keys=True)
        atomic_write(directory / "model.safetensors.index.json", text + "\n")


def _groups(arrays: Mapping[str, LazyArray], shard_bytes: int) -> Iterator[list[str]]:
    """Paths of each shard, in the order in which the arrays are best read."""
    group: list[str] = []
    size = 0
    for path in sorted(arrays, key=lambda p: arrays[p].turn):
        group.append(path)
        size += arrays[path].nbytes
        if size >= shard_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group
