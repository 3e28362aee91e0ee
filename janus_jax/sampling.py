"""The former name of `janus_jax.inference`, which works for one version more."""

from __future__ import annotations

import warnings
from typing import Any

# Former name -> name in `janus_jax.inference`.
_NAMES = {
    "Conversation": "Conversation",
    "Conversations": "Conversations",
    "ImageEngine": "ImageEngine",
    "Janus": "Janus",
    "Knobs": "SamplingParams",
    "Mode": "StaticSampling",
    "Preview": "Preview",
    "TextEngine": "TextEngine",
    "keep_programs": "enable_compilation_cache",
    "make_knobs": "make_sampling_params",
    "pack": "fuse_params",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from janus_jax import inference

    new = _NAMES[name]
    where = "janus_jax" if new == "Janus" else "janus_jax.inference"
    warnings.warn(
        f"janus_jax.sampling.{name} is now {where}.{new}; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(inference, new)
