"""Options of public methods: unknown ones are named in one line, a `GenerationConfig` fills in the rest."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from janus_jax.errors import UserError, nearest
from janus_jax.processing import GenerationConfig
from janus_jax.untrusted import shown

P = ParamSpec("P")
R = TypeVar("R")


def checked_options(method: Callable[P, R]) -> Callable[P, R]:
    """Wraps a method; its signature stays visible.

    An option that the method does not have raises UserError with the nearest name. Where the method has a
    `config`, the settings of one that is given take the place of arguments that are not.
    """
    signature = inspect.signature(method)
    names = [name for name in signature.parameters if name not in ("self", "cls")]
    takes_config = "config" in names

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                raise UserError(
                    f"{method.__name__} has no option {shown(name)}.{nearest(name[:100], names)}"
                )
        config = kwargs.get("config") if takes_config else None
        if config is not None:
            if not isinstance(config, GenerationConfig):
                raise UserError(f"config must be a GenerationConfig, not {type(config).__name__}")
            given = signature.bind_partial(*args, **kwargs).arguments
            for name, value in config.given().items():
                if name in names and name not in given:
                    kwargs[name] = value
        return method(*args, **kwargs)

    return call
