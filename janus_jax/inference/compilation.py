"""Programs are compiled once a machine: JAX's persistent cache, in the user's cache directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax

from janus_jax.console import printable
from janus_jax.places import probe, user_cache

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # of JAX itself; empty switches the cache off


def default_directory() -> Path | None:
    """`$XDG_CACHE_HOME/janus_jax/programs`, or the same under `~/.cache`; None without a home."""
    cache = user_cache()
    return cache and cache / "programs"


def enable_compilation_cache(directory: Path | None = None, seconds: float = 0.5) -> Path | None:
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
        if directory is None:
            raise OSError("there is no home directory")
        directory.mkdir(parents=True, exist_ok=True)
        probe(directory)
    except OSError as error:
        reason = printable(error.strerror or error)
        where = f" in {printable(directory)}" if directory else ""
        print(f"warning: compiled programs are not kept{where}: {reason}", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    return directory
