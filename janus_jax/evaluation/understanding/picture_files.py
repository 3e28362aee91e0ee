"""Pictures that lie in folders beside the questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.items import Picture
from janus_jax.untrusted import printable

_SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp")  # of names that are written without one
_BYTES = 2**28


def picture_file(name: str, roots: Sequence[str]) -> Picture:
    """The picture of a name, looked for in some directories and never outside of them, when it is called."""
    return Picture(printable(name, 200), partial(_read, name, tuple(roots)))


def _read(name: str, roots: tuple[str, ...]) -> bytes:
    from janus_jax.data.pictures import Unusable, find_file

    problem: Unusable | None = None
    for suffix in _SUFFIXES:
        try:
            path = find_file(name + suffix, roots)
            break
        except Unusable as error:
            problem = problem or error
    else:
        raise UserError(f"{problem.reason}: {problem.detail}") from problem
    try:
        with open(path, "rb") as file:
            data = file.read(_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {printable(path, 200)}: {error.strerror or error}") from error
    if len(data) > _BYTES:
        raise UserError(f"{printable(path, 200)} has more than {_BYTES >> 20} MiB")
    return data
