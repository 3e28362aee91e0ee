"""Settings and random keys that differ from row to row, as the server has them."""

import jax
import numpy as np
import pytest
from dummies_model import make_janus

from janus_jax.errors import UserError
from janus_jax.inference.generator import Request, picture_keys, prompt_number
from janus_jax.inference.logits import StaticSampling, log_probs, make_sampling_params, sample
from janus_jax.inference.programs import ProgramList
from janus_jax.inference.slots import Rows, stacked
from janus_jax.parallel import make_mesh
from janus_jax.serving.engine.sizes import choose_sizes, sizes_that_fit

SETTINGS = (
    dict(temperature=0),
    dict(temperature=0.5),
    dict(temperature=1.5, top_k=2),
    dict(temperature=1.0, top_p=0.6),
)


def test_a_row_of_settings_of_its_own_draws_as_alone():
    logits = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    together = stacked([make_sampling_params(30, **one)[0] for one in SETTINGS])
    static = StaticSampling(guided=False, greedy=False, filtered=True)
    drawn = set()
    for seed in range(20):
        keys = jax.random.split(jax.random.key(seed), 4)
        found = sample(logits, keys, together, static)
        scores = log_probs(logits, found, together, static)
        for row, one in enumerate(SETTINGS):
            alone = slice(row, row + 1)
            how = make_sampling_params(30, **one)
            want = sample(logits[alone], keys[alone], *how)
            np.testing.assert_array_equal(found[alone], want)
            np.testing.assert_array_equal(scores[alone], log_probs(logits[alone], want, *how))
        drawn.add(tuple(found.tolist()))
    assert len(drawn) > 5


def test_a_guidance_that_is_one_in_float32_is_none():
    guided = [make_sampling_params(30, 1 + more)[1].guided for more in (0, 1e-9, 1e-7)]
    assert guided == [False, False, True]


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_keys_of_rows_are_those_of_a_drawing_with_their_seed(seed):
    requests = [Request([1, 5, 9], 0), Request([1, 5, 9], 3), Request([1, 7], 0)]
    want = picture_keys(jax.random.key(seed), requests, 3)
    prompts = [prompt_number(request.ids) for request in requests]
    columns = [seed] * 3, prompts, [request.index for request in requests]
    columns = (np.asarray(column, np.uint32) for column in columns)
    rows = Rows(None, None, None, *columns, None, None)
    engine = make_janus().slot_engine(2, True, 30, 4)
    found = jax.jit(engine._keys)(rows)
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(want))


def test_sizes():
    assert choose_sizes([4, 1, 2, 2, 16], 9) == [1, 2, 4]
    assert choose_sizes([1, 2, 4, 6], 100, shards=4) == [8], "rows of a part would not lie evenly"
    for wrong, message in (
        ([], "sizes is an empty list"),
        ([0], "each of sizes must be >= 1"),
        ([16, 32], "not even 16 rows fit, the limit of memory and max_batch is 8"),
    ):
        with pytest.raises(UserError, match=message):
            choose_sizes(wrong, 8)


def test_sizes_are_what_memory_has_room_for():
    janus = make_janus(memory_limit=1000)
    assert sizes_that_fit(janus, [1, 5, 8], 100, 300, "row") == [1, 5], "seven fit"
    assert sizes_that_fit(janus, [3], 300, 0, "row") == [3]
    with pytest.raises(UserError, match=r"not even 4 rows fit, .* is 3"):
        sizes_that_fit(janus, [4], 300, 0, "row")


@pytest.mark.multidevice
@pytest.mark.parametrize(("most", "sizes"), [(64, [6]), (4, [4]), (1, [2])])
def test_every_device_of_a_mesh_has_memory_of_its_own(most, sizes):
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    janus = make_janus(memory_limit=1000, mesh=mesh, max_batch=most)
    assert sizes_that_fit(janus, [1, 4, 6, 8], 300, 0, "row") == sizes


def test_pools_of_two_kinds_are_different_programs():
    janus, found = make_janus(), ProgramList()
    for codes in (True, False):
        engine = janus.slot_engine(1, codes, 30, 4)
        for _ in range(2):
            found(engine.empty, rows=2)
    assert len(found.programs) == 2
