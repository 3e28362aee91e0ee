"""The transformers model that all PyTorch peers share: with random weights, or read from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights

from janus_jax.config import JanusConfig
from janus_jax.interop.configs.hf import config_to_hf
from janus_jax.interop.conversion.convert import to_torch
from janus_jax.interop.conversion.names import HF
from janus_jax.interop.conversion.source import open_source
from janus_jax.processing import build_word_tokenizer


def build_model(
    config: JanusConfig,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    attention: str = "sdpa",
) -> Any:
    """A transformers model with random weights of unit gain, made where and as it is wanted.

    Args:
      config: the architecture; transformers cannot build all of them, see `config_to_hf`.
      dtype: of all weights; no float32 copy is ever made.
      device: where it lives; the values for one seed differ between kinds of devices.
      seed: of the weights.
      attention: "sdpa" (what transformers takes by default) or "eager".
    """
    model = _empty(config, dtype, device, attention)
    rng = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, value in module.named_parameters(recurse=False):
                value.normal_(generator=rng)
                if name == "bias":
                    value.mul_(0.1)
                elif value.ndim == 1:  # the scale of a norm
                    value.mul_(0.1).add_(1)
                elif not isinstance(module, nn.Embedding):  # [out, in, ...]
                    value.mul_(value[0].numel() ** -0.5)
    return model


def load_model(
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "sdpa",
) -> Any:
    """A checkpoint of any format that we read, as a transformers model; tensor by tensor.

    On a GPU set JAX_PLATFORMS=cpu, or jax reserves most of its memory.
    """
    source = open_source(directory)
    model = _empty(source.config, dtype, device, attention)
    left = dict(model.named_parameters())
    with torch.no_grad():
        for path, array in sorted(source.arrays.items(), key=lambda item: item[1].turn):
            for name, value in to_torch(path, array.load(), HF).items():
                if value.dtype.name == "bfloat16":  # numpy's is not torch's
                    tensor = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
                else:
                    tensor = torch.from_numpy(value)
                left.pop(name).copy_(tensor)
    if left:
        raise ValueError(f"{directory} lacks {', '.join(sorted(left)[:8])}")
    return model


def save_model(model: Any, directory: str | Path) -> None:
    """Writes config, safetensors and a small tokenizer, which `convert_torch_weights.py` reads."""
    model.save_pretrained(directory)
    tokenizer = build_word_tokenizer("a red cat what is it ?".split())
    (Path(directory) / "tokenizer.json").write_text(tokenizer.to_json())


def _empty(config: JanusConfig, dtype: torch.dtype, device: str, attention: str) -> Any:
    fields = config_to_hf(config, config.decoder.vocab_size - 1, str(dtype).removeprefix("torch."))
    hf = transformers.JanusConfig.from_dict(fields)
    with no_init_weights(), torch.device(device):
        model = transformers.JanusForConditionalGeneration._from_config(
            hf, dtype=dtype, attn_implementation=attention
        )
    return model.eval().requires_grad_(False)
