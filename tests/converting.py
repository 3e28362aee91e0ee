"""Checkpoints to convert, and both directions, for the tests of conversion."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from janus_jax.config import JANUS_TINY, JanusConfig, VQConfig
from janus_jax.interop import HF, OFFICIAL
from janus_jax.interop.configs.hf import config_to_hf
from janus_jax.interop.conversion.convert import expected_shapes
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import write_native, write_torch

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"
TABLES = {table.key: table for table in (OFFICIAL, HF)}
# Small, and with what transformers fixes: 32 groups, as many codes as patches along a side.
SMALL = JanusConfig.from_dict(
    JANUS_TINY.to_dict()
    | {
        "name": "small",
        "siglip": JANUS_TINY.siglip.replace(image_size=64, width=32, heads=2).to_dict(),
        "vq": VQConfig(64, 64, 8, 32, 32, (1, 1, 1, 1, 1), 1).to_dict(),
    }
)


def bits(array):
    array = np.asarray(array)
    return array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])


def same(one, other):
    """Whether two flat states hold the same bits under the same names."""
    return set(one) == set(other) and all(
        one[k].dtype == other[k].dtype and np.array_equal(bits(one[k]), bits(other[k])) for k in one
    )


def convert(src, dst, to, **kwargs):
    source = open_source(src)
    processor, tokenizer = source.processor()
    if to == "janus_jax":
        write_native(source, dst, processor, tokenizer)
    else:
        write_torch(source, dst, TABLES[to], processor, tokenizer, **kwargs)


def random_state(config, table, seed=0):
    """Random tensors of unit gain with the names and shapes of a format; the same on every machine."""
    rng = np.random.default_rng(seed)
    state = {}
    for path, shape in expected_shapes(config).items():
        for slot in table.to_torch(path):
            value = rng.standard_normal(slot.torch_shape(shape), np.float32)
            leaf = path.rsplit("/", 1)[-1]
            scale = np.prod(value.shape[1:]) ** -0.5 if leaf == "kernel" else 1.0
            scale = 0.1 if leaf in ("bias", "scale") else scale
            state[slot.name] = (value * scale + (leaf == "scale")).astype(np.float32)
    return state


def write_hf(directory, state, config, tokenizer):
    directory.mkdir()
    save_file(state, directory / "model.safetensors")
    text = json.dumps(config_to_hf(config, tokenizer.image_id, "float32"))
    (directory / "config.json").write_text(text)
    (directory / "tokenizer.json").write_text(tokenizer.to_json())
