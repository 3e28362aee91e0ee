"""The word tokenizer of models that know nothing but emoji scenes."""

from __future__ import annotations

from janus_jax.emoji.language import vocabulary
from janus_jax.emoji.world import World
from janus_jax.processing import Tokenizer, build_word_tokenizer


def word_tokenizer(objects: str = "tiny") -> Tokenizer:
    """A tokenizer with every word that can be said about scenes with `objects` (see `World`).

    Raises:
      UserError: no such set of objects.
    """
    return build_word_tokenizer(vocabulary(World(objects=objects)))
