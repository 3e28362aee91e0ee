"""PyTorch checkpoints used directly: converted on first use, found again on the next."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from janus_jax.weights.hub import is_hub_id, local_directory
from janus_jax.weights.source import is_ours, is_torch, open_source
from janus_jax.weights.write import write_ours

# Set it to keep converted models elsewhere.
ENVIRONMENT = "JANUS_JAX_CACHE"


def cache_directory() -> Path:
    """Where converted models are kept: $JANUS_JAX_CACHE, or janus_jax in the user's cache directory."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "janus_jax"


def our_directory(src: str | Path) -> Path:
    """A directory of ours for `src`: itself, or what it was converted to, now or earlier.

    Args:
      src: a directory of ours, or of PyTorch weights in either format, or a hub id. Anything else is
        returned as it is, so that its reader says what is wrong with it.

    Raises:
      UserError: the checkpoint cannot be downloaded or converted.
    """
    name = str(src)
    if is_ours(Path(name)) or not (is_hub_id(name) or is_torch(Path(name))):
        return Path(name)
    directory = local_directory(name)
    place = cache_directory() / f"{Path(name).name.lower()}-{_fingerprint(directory)}"
    if not is_ours(place):
        print(f"converting {name} into {place}, once", file=sys.stderr)
        source = open_source(directory, name=Path(name).name.lower())
        write_ours(source, place, *source.processor())
    return place


def _fingerprint(directory: Path) -> str:
    """Changes when a file of the checkpoint does: names, sizes and times of all of them."""
    files = sorted(p for p in directory.iterdir() if p.is_file())
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    text = repr((str(directory.resolve()), stats))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
