"""Prefill and decode under one jit: pictures from prompts, answers about pictures."""

from janus_jax.inference.api import Janus
from janus_jax.inference.compilation import enable_compilation_cache
from janus_jax.inference.conversation import Conversation, Conversations
from janus_jax.inference.drawing import ImageSamples
from janus_jax.inference.fused_params import fuse_params, unfuse_params
from janus_jax.inference.image_engine import ImageEngine
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.previews import Preview, PreviewWriter
from janus_jax.inference.text_engine import TextEngine
from janus_jax.processing import GenerationConfig

__all__ = [
    "Conversation",
    "Conversations",
    "GenerationConfig",
    "ImageEngine",
    "ImageSamples",
    "Janus",
    "Preview",
    "PreviewWriter",
    "SamplingParams",
    "StaticSampling",
    "TextEngine",
    "enable_compilation_cache",
    "fuse_params",
    "make_sampling_params",
    "unfuse_params",
]
