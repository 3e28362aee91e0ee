"""What plugs in by name: sources of data, benchmarks, tokenizers.

A registry holds names and where to find what they stand for, as "module:attribute": nothing is imported
before it is asked for, so general code names no plug-in and a config may name any.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from janus_jax.errors import UserError, nearest


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
          UserError: the name is taken by something else.
        """
        if self._places.get(name, place) != place:
            raise UserError(f"there is a {self._kind} named {name!r} already: choose another name")
        self._places[name] = place

    def get(self, name: str) -> Callable[..., Any]:
        """The factory of a name.

        Raises:
          UserError: no such name, and the message suggests the nearest; or it cannot be imported.
        """
        if name not in self._places:
            raise UserError(
                f"no {self._kind} {name!r} ({', '.join(self.names)}).{nearest(name, self._places)}"
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
