"""Prefill and decode under one jit: pictures from prompts, answers about pictures."""

from janus_jax.sampling.compilation import keep_programs
from janus_jax.sampling.conversation import Conversation, Conversations
from janus_jax.sampling.drawing import Preview
from janus_jax.sampling.image_engine import ImageEngine
from janus_jax.sampling.janus import Janus
from janus_jax.sampling.logits import Knobs, Mode, make_knobs
from janus_jax.sampling.text_engine import TextEngine
from janus_jax.sampling.weights import pack

__all__ = [
    "Conversation",
    "Conversations",
    "ImageEngine",
    "Janus",
    "Knobs",
    "Mode",
    "Preview",
    "TextEngine",
    "keep_programs",
    "make_knobs",
    "pack",
]
