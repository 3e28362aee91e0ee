"""A short text that is another one where an image tokenizer may give a picture other codes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from janus_jax.checkpoints.storage import flatten
from janus_jax.config import VQConfig

# Of the tokenizer's parameters; the rest makes pictures of codes.
ENCODER = ("encoder", "quant_conv", "quantize")


def tokenizer_mark(config: VQConfig, params: Mapping[str, Any]) -> str:
    """Of the architecture and the weights that encode, in float32, as training computes with them.

    Args:
      config: of the tokenizer.
      params: of the tokenizer, host arrays; those of `ENCODER` count.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    chosen = {part: params[part] for part in ENCODER}
    for path, leaf in sorted(flatten(chosen).items()):
        digest.update(f"{path} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf, np.float32).data)
    return digest.hexdigest()[:16]
