"""Scanned and unrolled layers are the same function of converted parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import JANUS_TINY, JanusConfig
from janus_jax.models import JanusModel, causal_mask, init_params, stack_layers, unstack_layers

pytestmark = pytest.mark.heavy

UNROLLED: JanusConfig = JANUS_TINY
SCANNED = UNROLLED.replace(scan_layers=True)


@pytest.fixture(scope="module")
def params():
    return init_params(JanusModel(UNROLLED), jax.random.key(0))


def assert_same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.partial(jax.jit, static_argnames="model")
def loss_and_gradients(model, params, pixels, embeds):
    positions = jnp.arange(embeds.shape[1])[None]
    mask = causal_mask(embeds.shape[1])

    def loss(params):
        apply = functools.partial(model.apply, {"params": params})
        features = apply(pixels, method="siglip_features")
        hidden, _ = apply(embeds, positions, mask, method="decode")
        return jnp.mean(features[..., 0]) + jnp.mean(hidden[..., 0] ** 2)

    return jax.value_and_grad(loss)({k: params[k] for k in ("siglip", "decoder")})


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_scanned_equals_unrolled(params, remat):
    size = UNROLLED.siglip.image_size
    pixels = jax.random.uniform(jax.random.key(1), (2, size, size, 3), minval=-1)
    embeds = jax.random.normal(jax.random.key(2), (2, 5, UNROLLED.decoder.width))
    value, gradients = loss_and_gradients(JanusModel(UNROLLED), params, pixels, embeds)
    stacked = stack_layers(params, SCANNED)
    value2, gradients2 = loss_and_gradients(
        JanusModel(SCANNED, remat=remat), stacked, pixels, embeds
    )
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    gradients2 = unstack_layers(gradients2, SCANNED)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, gradients, gradients2)


def test_round_trip_and_layout(params):
    stacked = stack_layers(params, UNROLLED)
    shapes = jax.eval_shape(lambda key: init_params(JanusModel(SCANNED), key), jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert_same_tree(unstack_layers(stacked, UNROLLED), params)
    # Already converted trees and partial trees pass through.
    assert_same_tree(stack_layers(stacked, UNROLLED), stacked)
    assert_same_tree(unstack_layers(params, UNROLLED), params)
    assert set(stack_layers({"vq": params["vq"]}, UNROLLED)) == {"vq"}


def test_both_layouts_start_from_the_same_numbers(params):
    scanned = init_params(JanusModel(SCANNED), jax.random.key(0))
    assert_same_tree(unstack_layers(scanned, SCANNED), params)


def test_numpy_arrays_stay_numpy():
    tree = {"siglip": {f"blocks_{i}": {"w": np.full(3, i)} for i in range(2)}}
    stacked = stack_layers(tree, UNROLLED)
    assert isinstance(stacked["siglip"]["blocks"]["w"], np.ndarray)
    assert_same_tree(unstack_layers(stacked, UNROLLED), tree)


def test_wrong_number_of_layers_is_refused():
    three = {"siglip": {f"blocks_{i}": {"w": np.zeros(1)} for i in range(3)}}
    with pytest.raises(ValueError, match="more than 2 blocks"):
        stack_layers(three, UNROLLED)
    with pytest.raises(ValueError, match="lacks blocks_1"):
        stack_layers({"siglip": {"blocks_0": {"w": np.zeros(1)}}}, UNROLLED)
    with pytest.raises(ValueError, match="config has 2"):
        unstack_layers({"siglip": {"blocks": {"w": np.zeros((3, 1))}}}, UNROLLED)
