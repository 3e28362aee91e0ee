"""Lists that are written as text, such as MMMU's options, read without running anything."""

from __future__ import annotations

import ast
import re

from janus_jax import untrusted
from janus_jax.errors import UserError

_LETTERS, _ELEMENTS = 100_000, 100  # of a list of options: real ones have at most 2,000 and 9
_QUOTED = re.compile(r"""\s*(?:'([^'"\\\]]*)'|"([^'"\\\]]*)")\s*(,|\])""")
# What pandas reads as "nothing" in a table, and VLMEvalKit with it: an option "None" is none there.
NOTHING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null|".split(
        "|"
    )
)


def is_list(text: str) -> bool:
    return text.startswith("[") and text.endswith("]")


def parse_list(text: str) -> list[str]:
    """The texts of a list of Python or JSON, such as "['a', 'b']"; numbers become texts.

    Raises:
      UserError: it is none, is very long, or holds something else.
    """
    if len(text) > _LETTERS:
        raise UserError(f"a list of {len(text)} letters is too long, {_LETTERS} at most")
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(f"{untrusted.shown(text)} is no list of texts") from error
    if not isinstance(value, list | tuple) or len(value) > _ELEMENTS:
        raise UserError(f"{untrusted.shown(text)} is no list of at most {_ELEMENTS} texts")
    if any(isinstance(v, bool) or not isinstance(v, str | int | float) for v in value):
        raise UserError(f"{untrusted.shown(text)} holds something else than texts")
    return [str(v) for v in value]


def quoted_texts(text: str) -> list[str] | None:
    """The parts of a list of quoted texts without escapes, however long: pictures in base64, names of files.

    None if it is something else.
    """
    parts, at = [], 1
    while found := _QUOTED.match(text, at):
        parts.append(found[1] if found[1] is not None else found[2])
        at = found.end()
        if found[3] == "]":
            return parts if at == len(text) else None
    return None
