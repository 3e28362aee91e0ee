"""What plugs in below a run by its name in a config: sources of examples, and word tokenizers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from janus_jax.data.examples import Source
from janus_jax.errors import UserError, nearest
from janus_jax.registry import Registry

# Factories of sources: (task, seed=, **options) -> Source.
SOURCES = Registry(
    "source",
    {
        "emoji": "janus_jax.emoji.source:EmojiSource",
        "files": "janus_jax.data.formats:FileSource",
    },
)
# Factories of tokenizers for models with a closed vocabulary: (**options) -> Tokenizer.
TOKENIZERS = Registry("tokenizer", {"emoji": "janus_jax.emoji.tokenizer:word_tokenizer"})


def make_source(
    name: str, task: str, options: Mapping[str, Any], seed: int = 0, where: str = ""
) -> Source:
    """The source of a name.

    Args:
      name: in `SOURCES`.
      task: which kind of example it gives, one of `TASKS` or `STAGE_0_TASKS`.
      options: of this source.
      seed: another seed is another order of the same data, or other data where it is made on the fly.
      where: the field of the config that names it, for messages.

    Raises:
      UserError: no such source or option, an impossible value, or no examples.
    """
    prefix = f"{where}: " if where else ""
    try:
        factory = SOURCES.get(name)
        parameters = inspect.signature(factory).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        known = [p.name for p in parameters if p.name not in ("task", "seed")]
        for option in options:
            if option in ("task", "seed") or not (takes_any or option in known):
                raise UserError(
                    f"source {name!r} has no option {option!r}.{nearest(option, known)}"
                )
        try:
            inspect.signature(factory).bind(task, seed=seed, **options)
        except TypeError as error:  # such as an option that must be there
            raise UserError(f"source {name!r}: {error}") from error
        source = factory(task, seed=seed, **options)
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise UserError(
                f"source {name!r} must have __len__ and __getitem__; {type(source).__name__} has not"
            )
        if not len(source):
            raise UserError(f"source {name!r} has no examples")
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error
    return source
