"""A progress bar that appears when there is something to show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


class LateBar:
    """A bar on stderr, from its first movement to the end of the `with`; where stderr is no terminal, none.

    Args:
      unit: of what is counted.
      name: in front of it.
      quiet: never a bar.
    """

    def __init__(self, unit: str, name: str = "", quiet: bool = False):
        self._unit, self._name, self._quiet = unit, name, quiet
        self._bar: tqdm | None = None

    def __enter__(self) -> LateBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def to(self, done: int, total: int, name: str = "") -> None:
        """Shows that `done` of `total` are there; those of the first call were there before."""
        if self._bar is None:
            self._bar = self._open(total=total, initial=done)
        if name:
            self._bar.set_description(name, refresh=False)
        self._bar.update(done - self._bar.n)

    def add(self) -> None:
        """Counts one more of an unknown number."""
        if self._bar is None:
            self._bar = self._open()
        self._bar.update()

    def over(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values; each is counted once it is dealt with."""
        for value in values:
            yield value
            self.add()

    def _open(self, **fields: Any) -> tqdm:
        shown = True if self._quiet else None
        return tqdm(unit=f" {self._unit}", desc=self._name or None, disable=shown, **fields)
