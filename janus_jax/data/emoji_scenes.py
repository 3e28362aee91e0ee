"""The former name of `janus_jax.emoji`, which works for one version more."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

# Former name -> name in the package of now, where it is another.
_RENAMED = {"KIND_TASKS": "SCENES_OF_QUESTION", "TASKS": "SCENE_KINDS"}
_NOW = "janus_jax.emoji"  # a plug-in, so it is not imported before it is asked for


def __getattr__(name: str) -> Any:
    new = _RENAMED.get(name, name)
    emoji = importlib.import_module(_NOW)
    if new not in emoji.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__}.{name} is {_NOW}.{new} now; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(emoji, new)
