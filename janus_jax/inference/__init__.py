"""Prefill and decode under one jit: pictures from prompts, answers about pictures."""

from janus_jax.inference.api import Janus
from janus_jax.inference.compilation import keep_programs
from janus_jax.inference.conversation import Conversation, Conversations
from janus_jax.inference.fused_params import pack
from janus_jax.inference.generator import Preview
from janus_jax.inference.image_engine import ImageEngine
from janus_jax.inference.logits import Knobs, Mode, make_knobs
from janus_jax.inference.text_engine import TextEngine

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
