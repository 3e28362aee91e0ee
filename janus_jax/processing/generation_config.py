"""Settings of one request, in one object."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Self

from janus_jax.errors import UserError, nearest
from janus_jax.untrusted import shown

P = ParamSpec("P")


@dataclass(frozen=True)
class GenerationConfig:
    """How to draw or to answer. None leaves a setting to the default of the method that reads it.

    One object serves both: drawing does not read `max_new_tokens` and `stop`, answering reads neither
    `cfg_weight` nor `top_k`. A single argument of a method goes before its field here. Values are checked where
    they are used.

    Attributes:
      cfg_weight: classifier-free guidance of drawing; 1 is without and twice as fast. Default: the checkpoint's.
      temperature: 0 is greedy. Default: the checkpoint's of drawing, 0 of answering.
      top_k: draw from the K most likely codes only.
      top_p: draw from the most likely ones of this total probability only.
      seed: 0 to 2**32 - 1. Default: 0.
      max_new_tokens: most tokens of an answer. Default: 512.
      stop: texts; an answer ends before the first of them.

    Example:
      >>> config = GenerationConfig(temperature=0.8, seed=7)
      >>> config.replace(seed=8)
      GenerationConfig(temperature=0.8, seed=8)
    """

    cfg_weight: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    stop: str | Sequence[str] | None = None

    def __post_init__(self):
        if isinstance(self.stop, list):  # which could change, and has no hash
            object.__setattr__(self, "stop", tuple(self.stop))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.given().items())
        return f"{type(self).__name__}({fields})"

    def given(self) -> dict[str, Any]:
        """The settings that are not None."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def replace(self, **changes: Any) -> Self:
        """A copy with other settings. Raises UserError for one that does not exist."""
        return self.from_dict(self.given() | changes)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Settings by name, such as of a JSON request.

        Raises:
          UserError: a setting that does not exist; the message has the nearest name.
        """
        if not isinstance(settings, Mapping):
            raise UserError(f"generation settings must be a dict, not {type(settings).__name__}")
        _check_names(settings)
        return cls(**settings)


def _check_names(names: Iterable[Any]) -> None:
    known = [f.name for f in dataclasses.fields(GenerationConfig)]
    for name in names:
        if name not in known:
            raise UserError(
                f"no generation setting {shown(name)}.{nearest(str(name)[:100], known)}"
            )


def _checked(init: Callable[P, None]) -> Callable[P, None]:
    """`__init__` with a message for settings that do not exist; its signature stays visible."""

    @functools.wraps(init)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        _check_names(kwargs)
        init(*args, **kwargs)

    return call


GenerationConfig.__init__ = _checked(GenerationConfig.__init__)  # type: ignore[method-assign]
