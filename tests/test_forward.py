"""The model's forward pass of training: merging, log-probabilities, and codes in place of pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from janus_jax.batch import TASK_TEXT, TOKEN_GEN, TOKEN_TEXT, TOKEN_UND
from janus_jax.config import JANUS_TINY
from janus_jax.models import JanusModel, init_params, merge_features
from janus_jax.models.merging import sources_in_order
from janus_jax.pixels import to_float, to_uint8
from janus_jax.training.objectives.janus import janus_loss

pytestmark = pytest.mark.heavy

CONFIG = JANUS_TINY.replace(
    siglip=JANUS_TINY.siglip.replace(width=32, layers=1, heads=2),
    vq=JANUS_TINY.vq.replace(codebook_size=64, z_channels=16, ch=16, norm_groups=4),
    decoder=JANUS_TINY.decoder.replace(
        width=32, ffw=64, layers=1, heads=2, kv_heads=2, head_dim=16, vocab_size=128
    ),
)
MODEL = JanusModel(CONFIG)
P, N, SIZE = CONFIG.siglip.num_patches, CONFIG.vq.num_codes, CONFIG.siglip.image_size
T, M = 2 + P + N + 4, 4
FEATURES = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    """Two rows: in each a picture to understand, one to generate, and text targets."""
    rng = np.random.default_rng(1)
    types = np.full((2, T), TOKEN_TEXT, np.int32)
    types[:, 2 : 2 + P] = TOKEN_UND
    start = 2 + P + 1
    types[:, start + 1 : start + N] = TOKEN_GEN
    image = lambda: rng.integers(0, 256, (2, 1, SIZE, SIZE, 3)).astype(np.uint8)
    return {
        "tokens": rng.integers(0, 128, (2, T)).astype(np.int32),
        "token_types": types,
        "segment_ids": np.ones((2, T), np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (2, 1)),
        "target_ids": rng.integers(0, 128, (2, M)).astype(np.int32),
        "target_positions": np.tile(np.array([0, 1, start - 1, T - 1], np.int32), (2, 1)),
        "target_tasks": np.full((2, M), TASK_TEXT, np.int32),
        "target_weights": np.ones((2, M), np.float32),
        "und_images": image(),
        "gen_images": image(),
        "gen_starts": np.full((2, 1), start, np.int32),
        "gen_weights": np.ones((2, 1), np.float32),
    }


@jax.jit
def evaluate(params, batch):
    """(metrics, gradients, log-probabilities)."""
    loss = lambda params: janus_loss(MODEL, params, batch)
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return metrics, grads, MODEL.apply({"params": params}, batch, method="target_log_probs")


def with_codes(params, batch):
    codes = MODEL.apply({"params": params}, batch, method="target_codes")
    assert codes.shape == (2, 1, N) and codes.dtype == jnp.int32
    rest = {k: v for k, v in batch.items() if k != "gen_images"}
    return {**rest, "gen_codes": np.asarray(codes)}


def test_codes_in_place_of_pictures_give_the_same_loss_without_the_tokenizer(params, batch):
    metrics, grads, _ = evaluate(params, batch)
    given = with_codes(params, batch)
    # There is no tokenizer that could run.
    rest = {k: v for k, v in params.items() if k != "vq"}
    found, found_grads, _ = evaluate(rest, given)
    for name, value in metrics.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-6), name
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found_grads, {k: grads[k] for k in rest})
    assert all(not np.any(g) for g in jax.tree.leaves(grads["vq"]))
    # Other codes are another loss.
    wrong = {**given, "gen_codes": (given["gen_codes"] + 1) % 64}
    assert abs(float(evaluate(rest, wrong)[0]["loss_gen"]) - float(metrics["loss_gen"])) > 1e-4


def test_log_probabilities_are_those_of_the_logits(params, batch):
    given = with_codes(params, batch)
    _, _, (text, image) = evaluate(params, batch)
    run = lambda method, *x: MODEL.apply({"params": params}, *x, method=method)
    hidden = np.asarray(run("hidden", given))
    assert hidden.shape == (2, T, CONFIG.decoder.width)
    start = int(batch["gen_starts"][0, 0])
    of_text = np.asarray(jax.nn.log_softmax(run("text_logits", hidden)))
    of_codes = np.asarray(jax.nn.log_softmax(run("image_logits", hidden)))
    assert text.shape == (2, M) and image.shape == (2, 1, N)
    for row in range(2):
        for m, (at, token) in enumerate(
            zip(batch["target_positions"][row], batch["target_ids"][row], strict=True)
        ):
            assert float(text[row, m]) == pytest.approx(of_text[row, at, token], rel=1e-4)
        for i, code in enumerate(given["gen_codes"][row, 0]):
            wanted = of_codes[row, start + i, code]
            assert float(image[row, 0, i]) == pytest.approx(wanted, rel=1e-4)


def test_the_loss_is_the_weighted_mean_of_the_log_probabilities(params, batch):
    weights = np.array([[0.25, 0, 0.5, 0], [0, 0, 0, 0.125]], np.float32)
    light = batch | {"target_weights": weights, "gen_weights": np.zeros((2, 1), np.float32)}
    metrics, _, (text, _) = evaluate(params, light)
    wanted = -np.sum(np.asarray(text) * weights) / weights.sum()  # though they sum to less than 1
    assert float(metrics["loss"]) == float(metrics["loss_text"]) == pytest.approx(wanted, rel=1e-5)
    by_sequence = janus_loss(MODEL, params, light, "sequence")[1]
    # Two targets with a weight in the first row, one in the second.
    means = -np.sum(np.asarray(text) * weights, 1) / [2, 1]
    wanted = means.sum() / (0.375 + 0.125)
    assert float(by_sequence["loss"]) == pytest.approx(wanted, rel=1e-5)


def test_hidden_reads_each_modality_where_its_positions_are(params, batch):
    given = with_codes(params, batch)
    run = jax.jit(lambda batch: MODEL.apply({"params": params}, batch, method="hidden"))
    base, start = np.asarray(run(given)), int(batch["gen_starts"][0, 0])

    def first_change(**changes):
        found = np.abs(np.asarray(run({**given, **changes})) - base).max((0, 2))
        return int(np.flatnonzero(found > 1e-6)[0]) if (found > 1e-6).any() else None

    assert first_change(und_images=255 - given["und_images"]) == 2
    codes = given["gen_codes"].copy()
    codes[..., 3] = (codes[..., 3] + 1) % 64
    assert first_change(gen_codes=codes) == start + 4
    codes = given["gen_codes"].copy()
    codes[..., -1] = (codes[..., -1] + 1) % 64
    assert first_change(gen_codes=codes) is None  # the last code feeds nothing
    tokens = given["tokens"].copy()
    tokens[:, 2 : 2 + P] = 5  # ids at the positions of a picture are not read
    assert first_change(tokens=tokens) is None


def test_features_are_merged_by_source_in_order_or_shared():
    embeds = np.zeros((2, 5, 4), np.float16)
    where = np.array([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]], bool)
    sources = sources_in_order(where)
    assert sources.tolist() == [[-1, 0, -1, 1, 2], [0, -1, -1, -1, 1]]
    merged = np.asarray(merge_features(embeds, FEATURES, sources))
    assert merged.dtype == np.float16
    for row in range(2):
        count = where[row].sum()
        np.testing.assert_array_equal(
            merged[row, where[row]], FEATURES[row, :count].astype(np.float16)
        )
    assert not merged[~where].any()
    # Of one list for all rows, in any order and more than once.
    shared = rearrange(FEATURES, "b k d -> 1 (b k) d")
    sources = np.array([[5, -1, 0, 0, -1], [-1, 3, 3, 1, 5]], np.int32)
    merged = np.asarray(merge_features(embeds, shared, sources))
    wanted = np.where(sources[..., None] >= 0, shared[0][np.maximum(sources, 0)], 0)
    np.testing.assert_array_equal(merged, wanted.astype(np.float16))


def test_pixels_are_the_same_on_host_and_device():
    every = np.arange(256, dtype=np.uint8)
    host = to_float(every)
    assert host.dtype == np.float32 and isinstance(host, np.ndarray)
    np.testing.assert_allclose(jax.jit(to_float)(every), host, rtol=0, atol=2e-7)
    np.testing.assert_array_equal(host, every.astype(np.float32) / np.float32(127.5) - 1)
    floats = np.linspace(-1.2, 1.2, 1001, dtype=np.float32)
    back = to_uint8(floats)
    assert back.dtype == np.uint8 and back[0] == 0 and back[-1] == 255
    np.testing.assert_array_equal(jax.jit(to_uint8)(floats), back)
