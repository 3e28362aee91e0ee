"""Prefill and decode under one jit: pictures from prompts, answers about pictures."""

from janus_jax.sampling.conversation import Conversation
from janus_jax.sampling.image_engine import ImageEngine
from janus_jax.sampling.janus import Janus
from janus_jax.sampling.logits import Knobs, Mode, make_knobs
from janus_jax.sampling.text_engine import TextEngine

__all__ = ["Conversation", "ImageEngine", "Janus", "Knobs", "Mode", "TextEngine", "make_knobs"]
