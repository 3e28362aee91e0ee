"""A `.bin` file of PyTorch: a pickled state dict, from which nothing but tensors is taken.

torch reads it with `weights_only=True`, which runs no code, and mapped, so that only what is asked for is
read. What it calls can still ask for any amount of memory, as compressed parts can: both are refused first.
"""

from __future__ import annotations

import functools
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from janus_jax.errors import UserError
from janus_jax.untrusted import printable

# "module name" of what a state dict of tensors or parameters needs.
_GLOBALS = re.compile(
    r"collections OrderedDict|torch [A-Za-z0-9]+Storage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
_MAX_PICKLE, _MAX_PARTS = 2**22, 2**16  # Janus-Pro-7B needs 250 kB and 1100 parts
# What a training checkpoint calls the part that holds the weights.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params")


def load_state(path: Path) -> dict[str, Any]:
    """Torch tensors by name; their values are read later.

    Args:
      path: the file.

    Raises:
      UserError: the file is damaged, holds anything but a dict of tensors, or could run code or take more
        memory than its own size; torch is not installed.
    """
    torch = _torch()
    _check(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's own reader and unpickler raise many types
        raise UserError(f"{path} cannot be read: {printable(error, 200)}") from error
    if isinstance(state, dict):
        for name in _CONTAINERS:
            if isinstance(state.get(name), dict):
                raise UserError(
                    f"{path} is no state dict but a training checkpoint, with the weights in {name!r}: "
                    "save that part alone"
                )
        if all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
            return state
    raise UserError(f"{path} is no state dict: it must hold tensors by name and nothing else")


def state_value(tensor: Any) -> np.ndarray:
    """The values of a tensor of `load_state`; may be a view of the file."""
    torch, tensor = _torch(), tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _check(path: Path) -> None:
    """Raises a UserError if reading the file could take more memory than the file, or run code."""
    refused = lambda why: UserError(f"{path} cannot be read: {why}")
    if not zipfile.is_zipfile(path):
        raise refused(
            "it is damaged, or of a format that torch wrote before version 1.6: save it again, or as "
            "safetensors"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise refused("parts of it are compressed, which torch.save never does")
            if len(parts) > _MAX_PARTS or sum(p.file_size for p in parts) > path.stat().st_size:
                raise refused("its table of contents does not fit its size")
            pickles = [part for part in parts if part.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
                raise refused("it holds no list of tensors that torch.save wrote")
            for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
                is_name = opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL")
                if is_name and not _GLOBALS.fullmatch(argument or ""):
                    raise refused(
                        f"it is a pickle that holds more than plain tensors ({printable(argument)}), and "
                        "loading it could run code"
                    )
    except UserError:
        raise
    except Exception as error:  # zipfile and pickletools raise many types for broken files
        raise refused(printable(error, 200) or type(error).__name__) from error


@functools.cache
def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            'pytorch_model.bin needs torch to be read: pip install "janus-jax[convert]"'
        ) from error
    return torch
