"""The model that is being trained as benchmarks see it: on the mesh of its run."""

import jax
import numpy as np
import pytest
from smoke import tiny

from janus_jax.models import init_params
from janus_jax.parallel import make_mesh, shard_params, to_host
from janus_jax.run import build
from janus_jax.run.predictors import Predictors, sampling_mesh

pytestmark = pytest.mark.heavy

PROMPTS = ["a red cat", "a dog to the left of a cat", "one owl"]


def predictors_on(params=None, **sizes):
    """Predictors of a run on a mesh, and its parameters there."""
    config = tiny(mesh__fsdp=1)
    config.mesh.update(sizes)
    experiment = build(config)
    if params is None:
        params = init_params(experiment.model, jax.random.key(0))
    return Predictors(experiment), shard_params(params, experiment.mesh)


@pytest.fixture(scope="module")
def alone():
    """What one device draws, answers and reconstructs."""
    predictors, params = predictors_on()
    predictor = predictors.of(params)
    pictures = predictor.draw(PROMPTS)
    answers = predictor.answer(pictures, ["what is it?"] * 3, max_new_tokens=8)
    return jax.device_get(params), pictures, answers, predictors.reconstruct(params, pictures)


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_eight_devices_draw_and_answer_as_one_does(alone, sizes):
    params, pictures, answers, reconstructed = alone
    predictors, sharded = predictors_on(params, **sizes)
    predictor = predictors.of(sharded)
    weights = jax.tree.leaves(predictors._janus.weights)
    assert all(len(w.sharding.device_set) == 8 for w in weights)
    # Another code would change a whole patch; rounding changes a value by one.
    drawn = predictor.draw(PROMPTS)
    assert np.abs(drawn.astype(int) - pictures).max() <= 1
    assert predictor.answer(pictures, ["what is it?"] * 3, max_new_tokens=8) == answers
    found = predictors.reconstruct(sharded, pictures)
    assert np.abs(found.astype(int) - reconstructed).max() <= 1


def test_other_parameters_are_drawn_without_compiling_again(alone):
    params, pictures, *_ = alone
    predictors, sharded = predictors_on(params, fsdp=4, data=2)
    predictors.of(jax.tree.map(lambda x: 1.5 * x, sharded))
    other = predictors._janus
    assert np.abs(predictors.of(sharded).draw(PROMPTS).astype(int) - pictures).max() <= 1
    assert predictors._janus is not other and predictors._janus.config is other.config


def test_tensor_axes_that_cut_heads_in_training_do_not_in_sampling():
    config = build(tiny()).janus_config
    assert config.decoder.kv_heads % 2 == 0 and config.decoder.kv_heads % 8
    assert sampling_mesh(make_mesh(1, 1, 1), config) is None
    even = make_mesh(data=2, fsdp=2, tensor=2)
    assert sampling_mesh(even, config) is even
    mesh = sampling_mesh(make_mesh(data=1, fsdp=1, tensor=8), config)
    heads = mesh.shape["tensor"]
    assert mesh.size == 8 and config.decoder.kv_heads % heads == 0 and heads > 1
    assert mesh.shape["data"] == 8 // heads
    assert list(mesh.devices.flat) == list(jax.devices())


def test_an_array_that_is_split_comes_to_the_host_whole():
    mesh = make_mesh(data=8)
    values = np.arange(16.0).reshape(8, 2)
    split = jax.device_put(
        values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    for array in (values, split, jax.numpy.asarray(values)):
        found = to_host(array)
        assert type(found) is np.ndarray and np.array_equal(found, values)
