"""Models of the Hugging Face hub: only the files that are needed, in the hub's own cache.

Without network, what an earlier download left in that cache is used. Its layout is documented
(huggingface.co/docs/huggingface_hub/guides/manage-cache): `models--OWNER--NAME/` holds `refs/main`, the
commit that was newest when it was asked for, and `snapshots/COMMIT/`, one link for each file downloaded.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from janus_jax.console import printable
from janus_jax.errors import UserError, one_line
from janus_jax.files import read_json
from janus_jax.interop.conversion.foreign import is_adapter

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = ("*.json", "*.jinja")
_SAFETENSORS, _BIN = ("*.safetensors",), ("*.bin",)


def is_hub_id(src: str) -> bool:
    """Whether `src` is no directory here, but has the form of a hub id, "owner/name"."""
    return _ID.fullmatch(src) is not None and not Path(src).exists()


def local_directory(src: str, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The directory itself, or of a hub id the downloaded one.

    Weights come as safetensors where the repository has them, else as `.bin`. If the hub cannot be
    reached, also because of `HF_HUB_OFFLINE`, the snapshot in its cache is taken; of a `revision` only its own.

    Raises:
      UserError: neither a directory nor a hub id, `huggingface_hub` is not installed, or the download
        failed and the cache holds no whole snapshot either.
    """
    if not is_hub_id(src):
        return Path(src)
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ImportError as error:
        raise UserError(
            f"{src} is no directory here, and to download it huggingface_hub is needed: pip install "
            '"janus-jax[convert]"'
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries say nothing new
    try:
        asked = {} if revision is None else {"revision": revision}
        asked |= {} if token is None else {"token": token}
        files = HfApi().list_repo_files(src, **asked)
        weights = _SAFETENSORS if any(f.endswith(".safetensors") for f in files) else _BIN
        return Path(snapshot_download(src, allow_patterns=[*_SETTINGS, *weights], **asked))
    except Exception as error:  # the hub raises its own, requests', httpx' and OSError
        reason = one_line(error)[:200] or type(error).__name__
        reason = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else reason
        snapshot, instead, expected = _cached(src, revision)
        if snapshot is None:
            raise UserError(
                f"{src} is no directory here, and it could not be downloaded: {reason}{instead}"
            ) from error
        if not (HF_HUB_OFFLINE and expected):  # who has set it knows
            print(
                f"warning: the hub did not answer ({reason}); using what it gave before, "
                f"{printable(snapshot)} (HF_HUB_OFFLINE=1 does not ask)",
                file=sys.stderr,
            )
        return snapshot


def repository_directory(src: str) -> str:
    """The name of a repository's directory in the hub's cache."""
    return "models--" + src.replace("/", "--")


def _cached(src: str, revision: str | None = None) -> tuple[Path | None, str, bool]:
    """(snapshot, what is there instead, whether it is that of the revision) in the hub's cache.

    An update that was cut short leaves the snapshot before it whole; that one is taken then.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    directory = Path(HF_HUB_CACHE).expanduser() / repository_directory(src)
    try:
        snapshots = sorted(p for p in (directory / "snapshots").iterdir() if p.is_dir())
    except OSError:
        return None, "", False
    try:
        ref = directory / "refs" / (revision or "main")
        newest = ref.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # downloaded by the name of a commit or tag
        newest = revision
    if revision is not None:
        snapshots = [p for p in snapshots if p.name == newest]
    lacking = {p: _lacking(p) for p in snapshots}
    whole = [p for p, lacks in lacking.items() if not lacks]
    for path in whole:
        if path.name == newest or len(whole) == 1:
            return path, "", path.name == newest
    if whole:
        some = ", ".join(map(str, whole))
        return None, f"; the hub's cache does not say which is newest, give one of {some}", False
    some = "; ".join(f"{p} lacks {lacks}" for p, lacks in lacking.items())
    return None, f"; the hub's cache holds only a part: {some}" if some else "", False


def _lacking(snapshot: Path) -> str:
    """What a snapshot needs and does not have, or ""; of an adapter its reader says it."""
    if is_adapter(snapshot) and not (snapshot / "config.json").exists():
        return ""
    if not (snapshot / "config.json").is_file():  # false, too, for a link to a file that is gone
        return "config.json"
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = snapshot / f"{name}.index.json"
        if index.is_file():
            try:
                files = sorted(
                    {str(file) for file in read_json(index, dict)["weight_map"].values()}
                )
            except (UserError, KeyError, AttributeError):
                return f"a readable {index.name}"
            return next((file for file in files if not (snapshot / file).is_file()), "")
        if (snapshot / name).is_file():
            return ""
    return "the weights"
