"""The decode kernel against the plain path, computed without a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import PRESETS, Policy
from janus_jax.inference import (
    ImageEngine,
    fuse_params,
    gpu_attention,
    kv_cache,
    make_sampling_params,
)
from janus_jax.inference.batching import deduplicate_prompts, left_pad
from janus_jax.inference.image_engine import Prompts
from janus_jax.models import JanusModel, init_params
from janus_jax.models.attention import apply_rotary, rotary

pytestmark = pytest.mark.heavy

H = 16


def plain(qkv, positions, layer, index, starts):
    """As `inference.decoder` without the kernel."""
    angles = rotary(positions[..., None], H, 10000.0)
    qkv = qkv[..., None, :, :, :]  # one token: [..., T, K, G + 2, H]
    turned = apply_rotary(qkv[..., :-1, :], *angles)
    layer = kv_cache.append(layer, turned[..., -1, :], qkv[..., -1, :], index)
    slot = jnp.arange(layer["k"].shape[-2])
    seen = (slot >= starts[..., None]) & (slot <= index)
    out = kv_cache.attend(turned[..., :-1, :], layer, seen[..., None, :])
    return out[..., 0, :, :, :], layer


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("slots", [20, 64, 150])
@pytest.mark.parametrize("rows", [(2, 1), (2, 40)])
def test_kernel_is_plain_attention(rows, slots, groups):
    K, rng = 4, np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    layer = {name: make(*rows, K, slots, H) for name in "kv"}
    starts = jnp.asarray(rng.integers(0, 10, rows), jnp.int32)
    for index in (10, slots // 2 + 1, slots - 1):
        qkv = make(*rows, K, groups + 2, H)
        positions = index - starts
        want, cache = plain(qkv, positions, layer, index, starts)
        angles = rotary(positions, H, 10000.0)
        got, layer = gpu_attention.decode_attention(
            qkv, angles, layer, jnp.int32(index), starts, interpret=True, block=16
        )
        np.testing.assert_allclose(got, want, atol=2e-6)
        for name in "kv":  # the new slot is written, all others stay
            np.testing.assert_allclose(layer[name], cache[name], atol=1e-6)


def test_unfilled_slots_are_not_read():
    rng = np.random.default_rng(0)
    rows, K, slots = (2, 3), 2, 70
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    layer = {name: make(*rows, K, slots, H).at[..., 31:, :].set(jnp.nan) for name in "kv"}
    layer = {name: x.at[..., :5, :].set(jnp.nan) for name, x in layer.items()}
    angles = rotary(jnp.full(rows, 25), H, 10000.0)
    starts = jnp.full(rows, 5)
    qkv = make(*rows, K, 3, H)
    out, _ = gpu_attention.decode_attention(qkv, angles, layer, jnp.int32(30), starts, True)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_drawing_with_the_kernel_is_drawing_without(monkeypatch, kv_heads):
    monkeypatch.setattr(
        gpu_attention,
        "decode_attention",
        functools.partial(gpu_attention.decode_attention, interpret=True),
    )
    config = PRESETS["janus-tiny"]
    config = config.replace(decoder=config.decoder.replace(kv_heads=kv_heads))
    policy = Policy()
    weights = fuse_params(init_params(JanusModel(config), jax.random.key(0)), config, policy)
    sampling, static = make_sampling_params(config.vq.codebook_size, cfg_weight=2.0)
    prompts = [[1, 7, 8, 9, 2], [1, 5, 2]]  # of two lengths: the shorter one is padded
    prompts, rows = deduplicate_prompts(prompts, 2, True, pad_id=0)
    ids, mask = left_pad(prompts, 4, 0)
    prompts = Prompts(ids, mask, np.asarray(rows, np.int32))
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = {}
    for kernel in (False, True):
        engine = ImageEngine(config, policy, "float32", kernel=kernel)
        assert (engine.cache_bucket == config.vq.num_codes) == kernel
        drawn[kernel], _ = engine.draw(weights, prompts, keys, sampling, static=static)
    np.testing.assert_array_equal(drawn[True], drawn[False])


def test_what_the_kernel_supports():
    assert gpu_attention.supported(jnp.bfloat16, 128)
    assert not gpu_attention.supported(jnp.int8, 128)
    assert not gpu_attention.supported(jnp.bfloat16, 96)
    assert jax.default_backend() == "cpu"  # else the tests above would not need `interpret`
