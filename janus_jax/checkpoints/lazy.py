"""Arrays on disk that are read when their turn comes, so that a tree of them never is in memory whole."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from janus_jax.checkpoints import storage
from janus_jax.files import DamagedError


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array of known shape and dtype that `load` makes.

    `array[i]` is the i-th part along the first axis, such as one layer of stacked ones: a `LazyArray`, too.

    Attributes:
      shape, dtype: of what `load` returns.
      load: makes the array, of numpy or on a device; called once.
      turn: arrays are made in the order of their turns, e.g. (file, position in the file).
      load_part: makes the part of an index; None where the whole is loaded for it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    turn: tuple[Any, ...] = ()
    load_part: Callable[[int], np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, index: int) -> LazyArray:
        part = self.load_part or (lambda i: self.load()[i])
        load = lambda: part(index)
        return LazyArray(self.shape[1:], self.dtype, load, (*self.turn, index))


def load_leaves(tree: Any) -> Any:
    """The tree with its lazy leaves loaded, as arrays that are no views of a file; others stay as they are."""

    def load(leaf: Any) -> Any:
        return _owned(leaf.load()) if isinstance(leaf, LazyArray) else leaf

    return jax.tree.map(load, tree)


def read_lazily(path: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The saved tree as `LazyArray`s; what is damaged is found when they are loaded.

    Args:
      path: what `storage.save_tree`, or a manager for one item, wrote.
      shapes: from `storage.read_shapes`.

    Raises:
      UserError: a file is damaged, now or in `load`.
    """
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, _Opening()))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    with storage.reading(path):
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        opened = ocp.Checkpointer(handler).restore(path, restore_args=as_numpy)
    return jax.tree.map(lambda opened: _lazy(path, opened.store), opened)


def _lazy(path: Path, store: ts.TensorStore) -> LazyArray:
    def load() -> np.ndarray:
        with storage.reading(path):
            return store.read().result()

    def load_part(index: int) -> np.ndarray:
        with storage.reading(path):
            return _read_part(store, index)

    return LazyArray(tuple(store.shape), store.dtype.numpy_dtype, load, (), load_part)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """An open array. A `TensorStore` itself looks like an array, and whoever takes it for one reads it."""

    store: ts.TensorStore


class _Opening(ocp.type_handlers.NumpyHandler):
    """Opens arrays and leaves them unread."""

    async def deserialize(
        self,
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.RestoreArgs] | None = None,
    ) -> list[Any]:
        opened = []
        for info in infos:
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
            store = await ts.open(ts.Spec(spec), open=True, context=info.ts_context)
            opened.append(_Opened(store))
        return opened


def _read_part(store: ts.TensorStore, index: int) -> np.ndarray:
    """One index of the first axis.

    TensorStore reads chunks whole, and a chunk of stacked layers has all of them. Where chunks are not
    compressed the part is one piece of each, and only that is read.
    """
    spec = store.spec().to_json()
    metadata = spec.get("metadata", {})
    plain = (
        spec.get("driver") == "zarr"
        and metadata.get("compressor", 0) is None
        and not metadata.get("filters")
        and metadata.get("order") == "C"
    )
    if not plain:
        return store[index].read().result()
    chunk, dtype = metadata["chunks"], np.dtype(store.dtype.numpy_dtype)
    out = np.empty(store.shape[1:], dtype)
    separator = metadata.get("dimension_separator", ".")
    piece = int(np.prod(chunk[1:], dtype=np.int64)) * dtype.itemsize
    begin = index % chunk[0] * piece
    counts = [-(-n // size) for n, size in zip(store.shape[1:], chunk[1:], strict=True)]
    for cell in itertools.product(*map(range, counts)):
        key = separator.join(map(str, (index // chunk[0], *cell)))
        value = store.kvstore.read(key, byte_range=slice(begin, begin + piece)).result().value
        if len(value) != piece:
            raise DamagedError(f"{store.kvstore.url}: chunk {key} is missing or too short")
        block = np.frombuffer(value, dtype).reshape(chunk[1:])
        where = tuple(
            slice(i * size, min((i + 1) * size, n))
            for i, size, n in zip(cell, chunk[1:], out.shape, strict=True)
        )
        out[where] = block[tuple(slice(s.stop - s.start) for s in where)]
    return out


def _owned(value: np.ndarray) -> np.ndarray:
    """A copy of what is a view of a mapped file, which JAX would otherwise keep on a CPU; else itself."""
    if not isinstance(value, np.ndarray):  # on a device
        return value
    base: Any = value
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return value if isinstance(base, np.ndarray | bytes | bytearray) else np.array(value, order="K")
