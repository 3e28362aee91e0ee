"""Programs are compiled once a machine: JAX's persistent cache, in the user's cache directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # of JAX itself; empty switches the cache off


def default_directory() -> Path:
    """`$XDG_CACHE_HOME/janus_jax/programs`, or the same under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "janus_jax" / "programs"


def keep_programs(directory: Path | None = None, seconds: float = 0.5) -> Path | None:
    """Lets JAX keep what it compiles, for entry points to call before anything compiles.

    Does nothing where the user has set `JAX_COMPILATION_CACHE_DIR`, also to nothing, or where the
    directory cannot be written; it is a help and never a reason to fail.

    Args:
      directory: `default_directory()` unless given.
      seconds: what compiles faster than this is not kept.

    Returns:
      The directory, or None.
    """
    if _VARIABLE in os.environ:
        return Path(os.environ[_VARIABLE]) if os.environ[_VARIABLE] else None
    directory = directory or default_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(directory)
    except OSError as error:
        print(f"warning: compiled programs are not kept: {error}", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    return directory
