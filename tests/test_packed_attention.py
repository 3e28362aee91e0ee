"""Packed attention: segments do not see each other, by every back end that runs here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models import Segments, attention, packed_attention
from janus_jax.models.packed_attention import pallas_attention, segment_offsets

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


BACK_ENDS = {
    "xla": lambda q, k, v: packed_attention(q, k, v, Segments(IDS)),
    "pallas": lambda q, k, v: jnp.where(
        (IDS > 0)[..., None, None], pallas_attention(q, k, v, IDS, interpret=True), 0
    ),
}


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_segments_are_alone(back_end, key_heads):
    q, k, v = inputs(4, key_heads)
    with jax.default_matmul_precision("highest"):
        native = BACK_ENDS[back_end](q, k, v)
        np.testing.assert_allclose(native, one_by_one(q, k, v), atol=2e-5)
    assert not np.asarray(native)[0, 137:].any()  # padding


def test_gradients_of_back_ends_are_equal():
    q, k, v = inputs(4, 2)
    out = inputs(4, 2, seed=1)[0]
    loss = lambda call, *x: jnp.sum(call(*x) * out)
    with jax.default_matmul_precision("highest"):
        want, got = (
            jax.grad(functools.partial(loss, BACK_ENDS[name]), argnums=(0, 1, 2))(q, k, v)
            for name in ("xla", "pallas")
        )
    for native, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(native, theirs, atol=5e-5)
        assert not np.asarray(theirs)[0, 137:].any()


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
