"""Tensors of a PyTorch checkpoint on disk, read one at a time.

What may lie in a directory: `model.safetensors` or `pytorch_model.bin`, or several of either with an
`.index.json`. Safetensors is taken where both are there. A `.bin` is a pickle: see `pickles`. Nothing but
regular files is opened, and none outside of the directory except through links.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from janus_jax.errors import UserError
from janus_jax.files import read_json
from janus_jax.interop.conversion.foreign import explain_files, explain_quantized
from janus_jax.interop.conversion.names import is_buffer
from janus_jax.interop.conversion.pickles import load_state, state_value
from janus_jax.untrusted import is_file, printable, shown

# (single file, its index) in order of preference.
Kinds = Sequence[tuple[str, str]]
_FILES: Kinds = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# safetensors' names of the dtypes that weights may have.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Janus-Pro-7B has 1100 tensors, names of 70 letters and a header of 130 kB.
_MAX_TENSORS, _MAX_NAME, _MAX_HEADER = 2**15, 255, 2**23
_SHOWN = 3  # problems listed; the rest is counted


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name, or "bfloat16"
    file: str

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)


class CheckpointFiles(Mapping[str, TensorInfo]):
    """The tensors of a checkpoint by name; `read` gives the values.

    One file is open at a time, so reading in the order of `by_file` keeps the memory in use near that of
    the largest file.

    Args:
      directory: of the checkpoint.
      kinds: (single file, its index) that may be there, in order of preference.

    Raises:
      UserError: no weights in the directory, a file is missing, damaged or no checkpoint, the index does
        not belong to the files, a tensor is in two files, or is not of floating point.
    """

    def __init__(self, directory: str | Path, kinds: Kinds = _FILES):
        self.directory = Path(directory)
        self.names, listed = _find(self.directory, kinds)
        self._open: tuple[str, Any] | None = None
        self._infos: dict[str, TensorInfo] = {}
        problems: list[str] = []
        dtypes: dict[str, str] = {}  # of those that weights cannot have
        for file in self.names:
            for name, info in self._reader(file).infos().items():
                _check_name(name, self.directory / file)
                if name in self._infos:
                    problems.append(f"{name} is in {self._infos[name].file} and in {file}")
                if info.dtype not in _DTYPES.values() and not is_buffer(name):
                    dtypes[name] = info.dtype
                self._infos[name] = info
            if len(self._infos) > _MAX_TENSORS:
                raise UserError(
                    f"{self.directory} has more than {_MAX_TENSORS} tensors: no Janus has"
                )
        if reason := explain_quantized(self._infos, dtypes):
            raise UserError(f"{directory}: {reason}")
        problems += [
            f"{name} has dtype {printable(dtype, 30)}, not a float of 16 or 32 bits: take it out if it is "
            "a buffer"
            for name, dtype in dtypes.items()
        ]
        if listed is not None:
            problems += [
                f"the index has {printable(n, 60)}, which is in no file"
                for n in listed
                if n not in self._infos
            ]
            problems += [f"{n} is not in the index" for n in self._infos if n not in listed]
        if problems:
            some = "; ".join(printable(problem, 120) for problem in problems[:_SHOWN])
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            message = f"the weights in {directory} are damaged: {some}{more}"
            raise UserError(message)

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self):
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor; the array may be a view of the file.

        Raises:
          UserError: the file is damaged there.
        """
        return self._reader(self._infos[name].file).read(name)

    def close(self) -> None:
        """Lets go of the open file."""
        self._open = None

    def _reader(self, file: str) -> Any:
        if self._open is None or self._open[0] != file:
            self._open = None  # before the next one is mapped
            path = self.directory / file
            kind = _Safetensors if file.endswith(".safetensors") else _TorchBin
            self._open = (file, kind(path))
        return self._open[1]


class _Safetensors:
    """Tensors of one `.safetensors` file."""

    def __init__(self, path: Path):
        self._path = path
        _check_header(path)
        self._file = _guarded(path, lambda: safe_open(path, framework="numpy"))

    def infos(self) -> dict[str, TensorInfo]:
        def one(name):
            part = self._file.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype(), part.get_dtype())
            return TensorInfo(tuple(part.get_shape()), dtype, self._path.name)

        names = self._file.keys()  # not a dict: it cannot be iterated itself
        return {name: _guarded(self._path, lambda n=name: one(n)) for name in names}

    def read(self, name: str) -> np.ndarray:
        return _guarded(self._path, lambda: self._file.get_tensor(name))


class _TorchBin:
    """Tensors of one pickled state dict."""

    def __init__(self, path: Path):
        self._path = path
        self._state = _guarded(path, lambda: load_state(path))

    def infos(self) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(tuple(t.shape), str(t.dtype).removeprefix("torch."), self._path.name)
            for name, t in self._state.items()
        }

    def read(self, name: str) -> np.ndarray:
        return _guarded(self._path, lambda: state_value(self._state[name]))


def _check_name(name: str, path: Path) -> None:
    if len(name) > _MAX_NAME or not name.isprintable():
        raise UserError(
            f"{path} cannot be read: no tensor of a model has the name {printable(name)!r}; it has "
            f"{len(name)} letters"
        )


def _check_header(path: Path) -> None:
    """The reader would take memory for a header of up to 100 MB."""
    with path.open("rb") as file:
        start, size = file.read(8), os.fstat(file.fileno()).st_size
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise UserError(
            f"{path} cannot be read: it is damaged or no safetensors file, for its header of {length} bytes "
            f"does not fit into {size} bytes, or is above {_MAX_HEADER}"
        )


def _guarded(path: Path, action: Callable[[], Any]) -> Any:
    """What safetensors says about a bad file, in one line."""
    try:
        return action()
    except UserError:
        raise
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
    ) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return printable(text, 200) or type(error).__name__


def _find(directory: Path, kinds: Kinds) -> tuple[list[str], dict[str, str] | None]:
    """Names of the weight files, and what the index says (tensor -> file) if there is one."""
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    for single, index in kinds:
        if is_file(directory / index):
            listed = _read_index(directory / index)
            files = sorted(set(listed.values()))
            missing = [f for f in files if not is_file(directory / f)]
            if missing:
                more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
                names = ", ".join(printable(name) for name in missing[:_SHOWN])
                raise UserError(
                    f"{directory} lacks {names}{more}, which {index} names; download it again"
                )
            return files, listed
        if is_file(directory / single):
            return [single], None
    raise UserError(
        explain_files(directory)
        or f"{directory} has no weights: model.safetensors or pytorch_model.bin, or shards with an index"
    )


def _read_index(path: Path) -> dict[str, str]:
    names = read_json(path, dict).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path} is no index of shards: it has no weight_map")
    for name, file in names.items():
        beside = isinstance(file, str) and Path(file).name == file and len(file) <= _MAX_NAME
        if not beside or not file.isprintable() or not file.endswith((".safetensors", ".bin")):
            raise UserError(
                f"{path} names the file {shown(file)} for {printable(name, 80)}, which is no weight file "
                "beside it"
            )
    return names
