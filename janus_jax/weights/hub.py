"""Models of the Hugging Face hub: only the files that are needed, in the hub's own cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from janus_jax.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = ("*.json", "*.jinja")
_SAFETENSORS, _BIN = ("*.safetensors",), ("*.bin",)


def is_hub_id(src: str) -> bool:
    """Whether `src` is no directory here, but has the form of a hub id, "owner/name"."""
    return not Path(src).exists() and _ID.fullmatch(src) is not None


def local_directory(src: str) -> Path:
    """The directory itself, or the downloaded one of a hub id.

    Weights come as safetensors where the repository has them, else as `.bin`.

    Raises:
      UserError: neither a directory nor a hub id, `huggingface_hub` is not installed, or the download
        failed.
    """
    if not is_hub_id(src):
        return Path(src)
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise UserError(
            f"{src} is no directory here, and to download it huggingface_hub is needed: pip install "
            '"janus-jax[convert]"'
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries say nothing new
    try:
        files = HfApi().list_repo_files(src)
        weights = _SAFETENSORS if any(f.endswith(".safetensors") for f in files) else _BIN
        return Path(snapshot_download(src, allow_patterns=[*_SETTINGS, *weights]))
    except Exception as error:  # the hub raises its own, requests', httpx' and OSError
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{src} is no directory here, and it could not be downloaded: {reason}"
        ) from error
