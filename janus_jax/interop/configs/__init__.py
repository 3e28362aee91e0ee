"""Architectures and processors: PyTorch's config files to and from `janus_jax.config`.

hf         config.json of transformers
official   config.json of deepseek-ai/Janus
llama      the language model's section, which both share
processor  tokenizer.json, processor_config.json and what else belongs to them
"""

from janus_jax.interop.configs.hf import config_from_hf, config_to_hf
from janus_jax.interop.configs.official import config_from_official, config_to_official
from janus_jax.interop.configs.processor import processor_files, read_processor

__all__ = [
    "config_from_hf",
    "config_from_official",
    "config_to_hf",
    "config_to_official",
    "processor_files",
    "read_processor",
]
