"""Tensors of a PyTorch checkpoint on disk, read one at a time.

What may lie in a directory: `model.safetensors` or `pytorch_model.bin`, or several of either with an
`.index.json`. Safetensors is taken where both are there. A `.bin` is a pickle: torch reads it, with
`weights_only=True`, which refuses everything but tensors, and mapped, so that only what is asked for
is read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from janus_jax.checkpoints import storage
from janus_jax.errors import UserError

# (single file, its index) in order of preference.
_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# safetensors' names of the dtypes that weights may have.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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

    Raises:
      UserError: no weights in the directory, a file is missing, damaged or no checkpoint, the index does
        not belong to the files, a tensor is in two files, or is not of floating point.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.names, listed = _find(self.directory)
        self._open: tuple[str, Any] | None = None
        self._infos: dict[str, TensorInfo] = {}
        problems = []
        for file in self.names:
            for name, info in self._reader(file).infos().items():
                if name in self._infos:
                    problems.append(f"{name} is in {self._infos[name].file} and in {file}")
                if info.dtype not in _DTYPES.values():
                    problems.append(f"{name} has dtype {info.dtype}, not a float of 16 or 32 bits")
                self._infos[name] = info
        if listed is not None:
            problems += [f"{n} of the index is in no file" for n in listed if n not in self._infos]
            problems += [f"{n} is not in the index" for n in self._infos if n not in listed]
        if problems:
            more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise UserError(
                f"the weights in {directory} are damaged: {'; '.join(problems[:8])}{more}"
            )

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
        torch = _torch()
        load = lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = _guarded(path, load)
        if not isinstance(state, dict) or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
        ):
            raise UserError(
                f"{path} is no state dict: it must hold tensors by name and nothing else"
            )
        self._state = state

    def infos(self) -> dict[str, TensorInfo]:
        return {
            name: TensorInfo(tuple(t.shape), str(t.dtype).removeprefix("torch."), self._path.name)
            for name, t in self._state.items()
        }

    def read(self, name: str) -> np.ndarray:
        torch, tensor = _torch(), self._state[name]
        if tensor.dtype == torch.bfloat16:
            return _guarded(
                self._path, lambda: tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            )
        return _guarded(self._path, tensor.numpy)


@functools.cache
def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            'pytorch_model.bin needs torch to be read: pip install "janus-jax[convert]"'
        ) from error
    return torch


def _guarded(path: Path, action: Callable[[], Any]) -> Any:
    """What the libraries say about a bad file, in one line."""
    try:
        return action()
    except UserError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error
    except (
        Exception
    ) as error:  # torch's restricted unpickler raises pickle.UnpicklingError and others
        if type(error).__name__ not in ("UnpicklingError", "BadZipFile"):
            raise
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Weights only load failed" in text or "Unsupported global" in text:
        return "it is a pickle that holds more than tensors, and loading it could run code"
    return text[:200] or type(error).__name__


def _find(directory: Path) -> tuple[list[str], dict[str, str] | None]:
    """Names of the weight files, and what the index says (tensor -> file) if there is one."""
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    for single, index in _FILES:
        if (directory / index).is_file():
            listed = _read_index(directory / index)
            files = sorted(set(listed.values()))
            missing = [f for f in files if not (directory / f).is_file()]
            if missing:
                raise UserError(
                    f"{directory} lacks {', '.join(missing)}, which {index} names; download it again"
                )
            return files, listed
        if (directory / single).is_file():
            return [single], None
    raise UserError(
        f"{directory} has no weights: model.safetensors or pytorch_model.bin, or shards with an index"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: it cannot be read or parsed, or is no object.
    """
    values = storage.read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one JSON object")
    return values


def _read_index(path: Path) -> dict[str, str]:
    try:
        names = {str(k): str(v) for k, v in read_object(path)["weight_map"].items()}
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} is no index of shards: it has no weight_map") from error
    for file in set(names.values()):
        if Path(file).name != file or not file.endswith((".safetensors", ".bin")):
            raise UserError(f"{path} names the file {file!r}, which is no weight file beside it")
    return names
