"""Which parameters train: patterns of their paths, and trees split and merged by them.

A path is the keys from the top, "decoder/layers/attn/q_proj/kernel". A pattern is a path whose parts may hold
the wildcards of a shell (`*`, `?`, `[...]`), each within one part; `**` stands for any number of parts, none
too. What matches is taken with everything below it:

  decoder                    the whole group
  siglip/blocks/**/kernel    the kernels of the (scanned) blocks; of unrolled ones: siglip/blocks_*/**/kernel
  decoder/layers_1?/attn     the attention of layers 10 to 19
  **/lora_*                  whatever an adapter has put next to frozen parameters
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from janus_jax.errors import UserError, nearest

WILDCARDS = "*?["
Tree = dict[str, Any]


def split_params(params: Tree, patterns: Sequence[str]) -> tuple[Tree, Tree]:
    """Splits nested dicts into (what matches a pattern, the rest).

    A subtree that falls wholly to one side is that very object; where one is cut, both sides have the keys
    above. `merge_params` is the inverse.

    Raises:
      UserError: a pattern matches nothing; the message names the nearest path.
    """
    rest = [tuple(pattern.split("/")) for pattern in patterns]
    for pattern, parts in zip(patterns, rest, strict=True):
        if not any(_matches(path, parts) for path, _ in _nodes(params)):
            paths = ("/".join(path) for path, _ in _nodes(params))
            raise UserError(f"no parameter matches {pattern!r}.{nearest(pattern, paths)}")
    return _split(params, (), rest)


def find_nodes(params: Tree, patterns: Sequence[str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, subtree or leaf) of everything that matches a pattern itself."""
    rest = [tuple(pattern.split("/")) for pattern in patterns]
    for path, value in _nodes(params):
        if any(_matches(path, parts) for parts in rest):
            yield path, value


def merge_params(one: Tree, other: Tree) -> Tree:
    """One tree of two that share no leaf.

    Raises:
      ValueError: both have a value at the same path.
    """
    merged = dict(one)
    for key, value in other.items():
        if key not in one:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(one[key], dict):
            merged[key] = merge_params(one[key], value)
        else:
            raise ValueError(f"both trees have a value at {key!r}")
    return merged


def _split(tree: Tree, path: tuple[str, ...], patterns: list[tuple[str, ...]]) -> tuple[Tree, Tree]:
    chosen, rest = {}, {}
    for key, value in tree.items():
        here = (*path, key)
        if any(_matches(here, pattern) for pattern in patterns):
            chosen[key] = value
            continue
        inner, outer = _split(value, here, patterns) if isinstance(value, dict) else ({}, value)
        if not inner:
            rest[key] = value
            continue
        chosen[key] = inner
        if outer:
            rest[key] = outer
    return chosen, rest


def _nodes(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of every subtree and leaf."""
    for key, value in tree.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from _nodes(value, (*path, key))


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[i:], pattern[1:]) for i in range(len(path) + 1))
    return (
        bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])
    )
