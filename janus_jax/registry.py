"""What plugs in by name: sources of data, benchmarks, tokenizers.

A registry holds names and where to find what they stand for, as "module:attribute": nothing is imported
before it is asked for, so general code names no plug-in and a config may name any.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from janus_jax.errors import UserError, nearest

_PLACE = re.compile(r"[\w.]+:\w+")


class Registry:
    """Names -> factories of one kind of thing.

    Args:
      kind: what the factories make, for messages, such as "source".
      builtin: name -> "module:attribute", what comes with the package.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str] | None = None):
        self._kind = kind
        self._places: dict[str, str | Callable[..., Any]] = dict(builtin or {})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._places))

    def register(self, name: str, place: str | Callable[..., Any]) -> None:
        """Adds a factory, or "module:attribute", where one is found when it is first asked for.

        Raises:
          UserError: the name is taken by something else, or one of the two is of another form. A function or
            class that is defined again, as in a notebook, takes the place of the one before.
        """
        if not isinstance(name, str) or not name:
            raise UserError(f"the name of a {self._kind} must be text, not {name!r}")
        if not callable(place) and not (isinstance(place, str) and _PLACE.fullmatch(place)):
            raise UserError(
                f"{self._kind} {name!r} must be a class, a function or 'module:attribute', not {place!r}"
            )
        if not _same(self._places.get(name, place), place):
            raise UserError(f"there is a {self._kind} named {name!r} already: choose another name")
        self._places[name] = place

    def get(self, name: str) -> Callable[..., Any]:
        """The factory of a name.

        Raises:
          UserError: no such name; the message suggests the nearest. Or nothing is found where it was said to be.
        """
        if not isinstance(name, str) or name not in self._places:
            raise UserError(
                f"no {self._kind} {name!r} ({', '.join(self.names)}).{nearest(str(name), self._places)}"
            )
        place = self._places[name]
        if isinstance(place, str):
            module, _, attribute = place.partition(":")
            try:
                place = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise UserError(
                    f"the {self._kind} {name!r} cannot be imported from {place}: {error}; is its "
                    "package installed, or its directory in PYTHONPATH?"
                ) from error
        return place


def _same(one: Any, other: Any) -> bool:
    """Whether two places are one; a callable is also known by its name, as it may be defined again."""
    names = [(getattr(p, "__module__", p), getattr(p, "__qualname__", p)) for p in (one, other)]
    return one == other or (names[0] == names[1] and "<lambda>" not in str(names[0][1]))
