"""Prefill and decode under one jit: pictures from prompts, answers about pictures."""

from janus_jax.inference.api import Janus
from janus_jax.inference.compilation import enable_compilation_cache
from janus_jax.inference.conversation import Conversation, Conversations
from janus_jax.inference.fused_params import fuse_params
from janus_jax.inference.generator import Preview
from janus_jax.inference.image_engine import ImageEngine
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.text_engine import TextEngine

__all__ = [
    "Conversation",
    "Conversations",
    "ImageEngine",
    "Janus",
    "Preview",
    "SamplingParams",
    "StaticSampling",
    "TextEngine",
    "enable_compilation_cache",
    "fuse_params",
    "make_sampling_params",
]
