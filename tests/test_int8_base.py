"""Frozen kernels in int8 under an adapter: near those they come from, never changed, floats again at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import CONFIG, random_params
from test_lora import IDS, MODEL, SMALL, adapted, logits, lora_run, saved

from janus_jax.adapters import LORA_PARAMS, dequantize, has_int8, lora_shapes, plain, quantize
from janus_jax.checkpoints import LazyArray, load_leaves, load_model
from janus_jax.config import PRESETS
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, init_params, stack_layers
from janus_jax.param_groups import merge_params, split_params
from janus_jax.run import build, train


def test_kernels_of_the_layers_alone_are_rounded_to_a_127th_of_the_largest_of_their_output():
    params = jax.tree.map(np.float32, random_params(CONFIG))
    small = quantize(params)
    kinds = {
        "/".join(k.key for k in path): str(x.dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(small)
        if str(x.dtype) != "float32"
    }
    projections = "attn/k attn/o attn/q attn/v mlp/down mlp/gate mlp/up".split()
    wanted = [f"decoder/layers_{i}/{p}_proj/kernel" for i in range(2) for p in projections]
    assert kinds == dict.fromkeys(wanted, "int8")
    back = dequantize(small)
    assert not has_int8(back) and has_int8(small)

    def near(path, one, other):
        step = np.abs(other).max(axis=0) / 127 if "kernel" in path[-1].key else 0
        assert (np.abs(one - other) <= 0.5001 * step).all(), path

    jax.tree_util.tree_map_with_path(near, back, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, quantize(small), small))  # once is enough


def test_the_network_computes_with_what_int8_stands_for():
    params = adapted()
    small = quantize(params)
    for one, other, exact in zip(
        *(logits(MODEL, p, IDS) for p in (small, dequantize(small), params)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)
        assert 0 < np.abs(one - exact).mean() < 0.02 * np.abs(exact).mean()
    for one, other in zip(logits(MODEL, plain(small), IDS), logits(MODEL, small, IDS), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_every_kind_of_tree_gives_the_same():
    params = jax.tree.map(np.float32, random_params(CONFIG))
    small = quantize(params)
    stacked = quantize(stack_layers(params, CONFIG))
    on_device = quantize(jax.tree.map(jnp.asarray, params))
    jax.tree.map(np.testing.assert_array_equal, stack_layers(small, CONFIG), stacked)
    # A device divides a little differently.
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(same, dequantize(on_device), dequantize(small))
    shapes = quantize(jax.eval_shape(lambda: params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), small
    )
    lazy = jax.tree.map(lambda x: LazyArray(x.shape, x.dtype, lambda: x), stacked)
    loaded = load_leaves(dequantize(lazy))
    jax.tree.map(np.testing.assert_array_equal, loaded, dequantize(stacked))
    zero = {"decoder": {"layers_0": {"kernel": np.zeros((3, 2), np.float32)}}}
    np.testing.assert_array_equal(dequantize(quantize(zero))["decoder"]["layers_0"]["kernel"], 0)


def test_the_base_of_seven_billion_is_half_of_its_bfloat16():
    config = PRESETS["janus-pro-7b"].replace(scan_layers=True)
    shapes = jax.eval_shape(lambda k: init_params(JanusModel(config), k), jax.random.key(0))
    layers = quantize(shapes)["decoder"]["layers"]
    sizes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(layers)) / 2**30
    count = sum(x.size for x in jax.tree.leaves(shapes["decoder"]["layers"])) / 2**30
    assert count < sizes < 1.002 * count
    assert sum(x.size for x in jax.tree.leaves(lora_shapes(quantize(shapes), SMALL))) > 0


def test_a_run_on_an_int8_base(tmp_path):
    run = tmp_path / "run"
    train(lora_run(policy__frozen_dtype="int8"), run, quiet=True)
    first, last = (split_params(saved(run, step), LORA_PARAMS) for step in (3, 6))
    jax.tree.map(np.testing.assert_array_equal, first[1], last[1])
    assert has_int8(last[1])
    loaded = load_model(run).params
    jax.tree.map(np.testing.assert_array_equal, loaded, plain(merge_params(*last)))
    assert not has_int8(loaded)


def test_int8_without_an_adapter_is_refused():
    config = lora_run(policy__frozen_dtype="int8")
    del config.stages.stage2.options["lora"]
    with pytest.raises(UserError, match=r"frozen_dtype=int8 is for adapters, and stage2 has none"):
        build(config)
    config.policy.frozen_dtype = "int4"
    with pytest.raises(UserError, match=r"frozen_dtype must be one of .*int8"):
        build(config)
