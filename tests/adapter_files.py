"""Adapters on disk and the tiny model that they are for, which transformers can build as well."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from converting import SMALL, random_state
from safetensors.numpy import load_file, save_file

from janus_jax.adapters import LoraOptions, add_lora, split_lora
from janus_jax.interop import HF, params_from_torch
from janus_jax.models import JanusModel, causal_mask

CONFIG = SMALL.replace(scan_layers=False)
# The language model, as most adapters; and every dense layer that there is.
LANGUAGE = LoraOptions().targets
EVERYTHING = ("decoder/**", "siglip/**", "und_adaptor/**", "gen_adaptor/**", "image_head/**")
IDS = np.random.default_rng(1).integers(0, 48, (2, 9))
PIXELS = np.random.default_rng(2).standard_normal((1, 64, 64, 3), np.float32)
WEIGHTS = "adapter_model.safetensors"


@functools.cache
def state():
    """The tensors of the base model, by transformers' names."""
    return random_state(CONFIG, HF)


@functools.cache
def base():
    """The base model, in the unrolled layout."""
    return params_from_torch(state(), CONFIG, table=HF)


def adapted(targets=LANGUAGE, rank=4, alpha=10.0, seed=0):
    """The base model with an adapter that changes it much."""
    params = add_lora(base(), LoraOptions(rank, alpha, tuple(targets)), jax.random.key(seed))
    rng = np.random.default_rng(seed)

    def fill(path, x):
        if path[-1].key == "lora_b":
            return rng.normal(0, 0.3, x.shape).astype(np.float32)
        return np.asarray(x)

    return jax.tree_util.tree_map_with_path(fill, params)


def leaves(params):
    return split_lora(params)[0]


def same(one, other):
    """Asserts that two trees hold the same bits."""
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(lambda x: x.dtype, other)


@jax.jit
def _outputs(params):
    def all_of_them(module):
        rows, length = IDS.shape
        positions = jnp.broadcast_to(jnp.arange(length), IDS.shape)
        mask = jnp.broadcast_to(causal_mask(length), (rows, length, length))
        hidden, _ = module.decode(module.embed_text(jnp.asarray(IDS)), positions, mask)
        features = module.embed_images(jnp.asarray(PIXELS))
        return module.text_logits(hidden), module.image_logits(hidden), features

    return JanusModel(CONFIG).apply({"params": params}, method=all_of_them)


def outputs(params):
    """Logits of text, logits of image codes, features of a picture."""
    return [np.asarray(x) for x in _outputs(params)]


def edit_settings(directory, **fields):
    """Changes fields of adapter_config.json."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(directory, change):
    """Changes the tensors: `change` gets the dict, and may return another one."""
    tensors = load_file(directory / WEIGHTS)
    changed = change(tensors)
    tensors = tensors if changed is None else changed
    (directory / WEIGHTS).unlink()
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, directory / WEIGHTS)


def rename(directory, function):
    edit_tensors(directory, lambda tensors: {function(k): v for k, v in tensors.items()})
