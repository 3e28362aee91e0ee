"""Compiled functions, called by a run or only listed for warm-up.

The code that decides which functions a request needs (`generator`, `dialogue`) is given a `Call`. A run hands it
`execute`; warm-up hands it a `ProgramList`, which computes shapes alone. So warm-up cannot list anything else
than what a run compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax

# (jitted function, *arguments, **static arguments) -> its result, or the shapes of it
Call = Callable[..., Any]


class Program(NamedTuple):
    """One function at one set of shapes.

    Attributes:
      label: of the function, for messages.
      function: from `jax.jit`.
      args: arrays, or `jax.ShapeDtypeStruct`s in their place.
      static: its static keyword arguments.
    """

    label: str
    function: Any
    args: tuple[Any, ...]
    static: dict[str, Hashable]

    @property
    def key(self) -> Hashable:
        """Equal for two programs that share one compilation."""
        leaves, tree = jax.tree.flatten(self.args)
        shapes, static = tuple(map(_shape, leaves)), tuple(sorted(self.static.items()))
        return self.function, tree, shapes, static

    def compile(self) -> None:
        """Compiles without running. JAX finds the result again when the function is called."""
        self.function.lower(*self.args, **self.static).compile()


def execute(function: Any, *args: Any, **static: Hashable) -> Any:
    """Runs a program."""
    return function(*args, **static)


class ProgramList:
    """Lists the programs that it is called with, each once, and returns the shapes of their results."""

    def __init__(self):
        self._programs: dict[Hashable, Program] = {}

    def __call__(self, function: Any, *args: Any, **static: Hashable) -> Any:
        program = Program(function.__name__.strip("_"), function, args, static)
        self._programs.setdefault(program.key, program)
        return jax.eval_shape(partial(function, **static), *args)

    @property
    def programs(self) -> list[Program]:
        """In the order in which they were first needed."""
        return list(self._programs.values())


def _shape(leaf: Any) -> Hashable:
    if not hasattr(leaf, "dtype"):
        return type(leaf)
    return tuple(leaf.shape), str(leaf.dtype), getattr(leaf, "weak_type", False)
