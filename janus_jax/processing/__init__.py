"""What the model reads and writes: tokens, chat prompts, pictures."""

from janus_jax.pixels import to_float, to_uint8
from janus_jax.processing.chat import UNDERSTANDING_SYSTEM_PROMPT
from janus_jax.processing.generation_config import GenerationConfig
from janus_jax.processing.image import (
    generation_pixels,
    grid,
    load_image,
    save_image,
    understanding_pixels,
)
from janus_jax.processing.processor import Processor, ProcessorConfig
from janus_jax.processing.sequence import (
    TASK_TEXT,
    TASK_UND,
    TOKEN_GEN,
    TOKEN_TEXT,
    TOKEN_UND,
    Features,
    conversation,
    generation_sequence,
    image_positions,
    text_sequence,
)
from janus_jax.processing.thumbnails import data_uri
from janus_jax.processing.tokenizer import Tokenizer, build_word_tokenizer

__all__ = [
    "TASK_TEXT",
    "TASK_UND",
    "TOKEN_GEN",
    "TOKEN_TEXT",
    "TOKEN_UND",
    "UNDERSTANDING_SYSTEM_PROMPT",
    "Features",
    "GenerationConfig",
    "Processor",
    "ProcessorConfig",
    "Tokenizer",
    "build_word_tokenizer",
    "conversation",
    "data_uri",
    "generation_pixels",
    "generation_sequence",
    "grid",
    "image_positions",
    "load_image",
    "save_image",
    "text_sequence",
    "to_float",
    "to_uint8",
    "understanding_pixels",
]
