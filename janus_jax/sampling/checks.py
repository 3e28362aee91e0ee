"""What is refused before anything is computed."""

from __future__ import annotations

import jax

from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.processing import Processor, ProcessorConfig


def seed_key(seed: int) -> jax.Array:
    """The random key of a seed; raises UserError if it is not 0 to 2**32 - 1."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be between 0 and {2**32 - 1}, got {seed}")
    return jax.random.key(seed)


def check_fit(config: JanusConfig, processor: Processor) -> None:
    """Raises UserError if the processor was made for another architecture."""
    expected = ProcessorConfig.from_model(config)
    for name in ("und_image_size", "gen_image_size", "num_image_tokens", "num_codes"):
        have, need = getattr(processor.config, name), getattr(expected, name)
        if have != need:
            raise UserError(f"processor config: {name} is {have}, but {config.name} needs {need}")
    if processor.tokenizer.vocab_size > config.decoder.vocab_size:
        raise UserError(
            f"the tokenizer has {processor.tokenizer.vocab_size} tokens, but {config.name} has "
            f"only {config.decoder.vocab_size} embeddings: it belongs to another checkpoint"
        )
