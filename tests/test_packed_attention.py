"""Packed attention: segments do not see each other, by every back end that runs here."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models import Segments, attention, packed_attention
from janus_jax.models.attention_kernels import segment_offsets, splash, triton
from janus_jax.models.packed_attention import agrees_with_dense, blocked, choose_back_end

pytestmark = pytest.mark.heavy

# Rows of several segments, of one, of many short ones, with and without padding.
ROWS = [[1] * 40 + [2] * 90 + [3] * 7 + [0] * 13, [1] * 150, [1 + i // 3 for i in range(150)]]
IDS = jnp.asarray(ROWS, jnp.int32)


def inputs(heads, key_heads, seed=0):
    rng = np.random.default_rng(seed)
    make = lambda n: jnp.asarray(rng.standard_normal((*IDS.shape, n, 16)), jnp.float32)
    return make(heads), make(key_heads), make(key_heads)


def one_by_one(q, k, v):
    """Every segment alone, as a row of its own, by the plain attention."""
    out = np.zeros(q.shape, np.float32)
    for row, ids in enumerate(ROWS):
        for segment in set(ids) - {0}:
            where = np.flatnonzero(np.asarray(ids) == segment)
            parts = [x[row : row + 1, where] for x in (q, k, v)]
            mask = attention.causal_mask(len(where))
            out[row, where] = attention.attend(*parts, mask)[0]
    return out


def in_blocks(q, k, v, ids):
    return blocked(q, k, v, ids, block=64)


def interpreted(kernel):
    return functools.partial(kernel, interpret=True)


def attention_by(compute):
    real = (IDS > 0)[..., None, None]
    return lambda q, k, v: jnp.where(real, compute(q, k, v, IDS), 0)


BACK_ENDS = {
    "dense": lambda q, k, v: packed_attention(q, k, v, Segments(IDS, "dense")),
    "default": lambda q, k, v: packed_attention(q, k, v, Segments(IDS)),
    "blocked": attention_by(in_blocks),
    "pallas": attention_by(interpreted(triton)),
    "splash": attention_by(interpreted(splash)),
}


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_segments_are_alone(back_end, key_heads):
    q, k, v = inputs(4, key_heads)
    with jax.default_matmul_precision("highest"):
        native = BACK_ENDS[back_end](q, k, v)
        np.testing.assert_allclose(native, one_by_one(q, k, v), atol=2e-5)
    assert not np.asarray(native)[0, 137:].any()  # padding


@pytest.mark.parametrize("back_end", [name for name in BACK_ENDS if name != "dense"])
def test_gradients_of_back_ends_are_equal(back_end):
    q, k, v = inputs(4, 2)
    out = inputs(4, 2, seed=1)[0]
    loss = lambda call, *x: jnp.sum(call(*x) * out)
    with jax.default_matmul_precision("highest"):
        want, got = (
            jax.grad(functools.partial(loss, BACK_ENDS[name]), argnums=(0, 1, 2))(q, k, v)
            for name in (back_end, "dense")
        )
    for native, theirs in zip(want, got, strict=True):
        np.testing.assert_allclose(native, theirs, atol=5e-5)
        assert not np.asarray(native)[0, 137:].any()


def test_no_block_sees_the_scores_of_a_whole_row():
    ids = jnp.ones((1, 256), jnp.int32)
    q = jnp.ones((1, 256, 2, 8))
    loss = lambda q: jnp.sum(blocked(q, q, q, ids, block=64))
    shapes = {
        tuple(v.aval.shape)
        for eqn in _equations(jax.make_jaxpr(jax.grad(loss))(q).jaxpr)
        for v in eqn.outvars
    }
    assert any(
        shape[-2:] == (64, 256) for shape in shapes
    )  # of the last block: it looked at scores
    assert not any(shape[-2:] == (256, 256) for shape in shapes)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_auto_takes_what_the_device_has():
    assert choose_back_end("cpu", 128, jnp.float32) == "blocked"
    assert choose_back_end("tpu", 128, jnp.bfloat16) == "splash"
    assert choose_back_end("tpu", 64, jnp.bfloat16) == "blocked"  # splash needs whole lanes
    assert choose_back_end("gpu", 128, jnp.bfloat16) == "blocked"  # none here to try kernels on


def test_a_back_end_that_does_not_run_or_is_wrong_is_not_chosen(monkeypatch):
    assert agrees_with_dense("blocked", 16, jnp.float32)
    assert not agrees_with_dense("cudnn", 16, jnp.bfloat16)  # no GPU here
    # The package has a function of the same name.
    module = importlib.import_module("janus_jax.models.packed_attention")
    wrong = lambda q, k, v, ids: jnp.roll(module.blocked(q, k, v, ids), 1, axis=1)
    monkeypatch.setitem(module._COMPUTE, "blocked", wrong)
    assert not agrees_with_dense("blocked", 16, jnp.float32)
    nothing = lambda q, k, v, ids: q * jnp.nan
    monkeypatch.setitem(module._COMPUTE, "blocked", nothing)
    assert not agrees_with_dense("blocked", 16, jnp.float32)


def test_padding_of_any_content_changes_nothing():
    q, k, v = inputs(4, 4)
    real = (IDS > 0)[..., None, None]
    bad = [jnp.where(real, x, jnp.nan) for x in (q, k, v)]
    call = lambda *x: jnp.sum(packed_attention(*x, Segments(IDS)) ** 2)
    want, got = (jax.grad(call, argnums=(0, 1, 2))(*x) for x in ((q, k, v), bad))
    for native, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(native, theirs)


def test_offsets_say_where_segments_lie():
    lengths, offsets = segment_offsets(jnp.asarray([[1, 1, 2, 0], [1, 2, 3, 3]]), 4)
    np.testing.assert_array_equal(lengths, [[2, 1, -1, -1], [1, 1, 2, -1]])
    np.testing.assert_array_equal(offsets, [[0, 2, -1, -1, -1], [0, 1, 2, -1, -1]])


def test_jax_tells_cudnn_of_each_segment_once():
    """What JAX makes of our lengths and starts: those of all rows after each other."""
    from jax._src.cudnn.fused_attention_stablehlo import _fix_seqlen_offsets as fix

    lengths, offsets = segment_offsets(IDS, 64)
    q, k, _ = inputs(4, 4)
    q_lengths, _, q_offsets, _ = fix(lengths, lengths, offsets, offsets, q, k)
    q_lengths, starts = (np.asarray(x).ravel() for x in (q_lengths, q_offsets // (4 * 16)))
    want = []
    for row, ids in enumerate(ROWS):
        for segment in sorted(set(ids) - {0}):
            want.append((row * len(ids) + ids.index(segment), ids.count(segment)))
    count = len(want)
    found = list(zip(starts[:count].tolist(), q_lengths[:count].tolist(), strict=True))
    assert found == want
    assert not q_lengths[count:].any()
    assert (starts[count:] == IDS.size).all()


def test_unknown_back_end():
    q, k, v = inputs(4, 4)
    with pytest.raises(ValueError, match="back end must be one of"):
        packed_attention(q, k, v, Segments(IDS, "flash"))
