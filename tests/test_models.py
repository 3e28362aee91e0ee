"""The network: sizes of the released models, caching, masks, dtypes, and each layer's trap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import JANUS_1_3B, JANUS_PRO_1B, JANUS_PRO_7B, JANUS_TINY, Policy
from janus_jax.models import JanusModel, causal_mask, init_cache, init_params, segment_mask
from janus_jax.models.attention import attend
from janus_jax.models.einsum import einsum
from janus_jax.models.layers import Conv, RMSNorm, gelu
from janus_jax.models.vqgan import normalize

pytestmark = pytest.mark.heavy

TINY = JANUS_TINY.replace(decoder=JANUS_TINY.decoder.replace(layers=2))
WIDTH = TINY.decoder.width


@pytest.fixture(scope="module")
def params():
    return init_params(JanusModel(TINY), jax.random.key(0))


@functools.partial(jax.jit, static_argnames=("model", "method"))
def run(model, params, args, method):
    return model.apply({"params": params}, *args, method=method)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def counts(tree):
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in tree.items()}


# Trunk without the stored but unused pooling head; tokenizer without its usage statistic.
SHARED = {"siglip": 303_688_704, "gen_embed": 131_072, "vq": 71_883_403}
COUNTS_1B = {
    **SHARED,
    "decoder": 1_652_656_128,
    "und_adaptor": 6_295_552,
    "gen_adaptor": 4_214_784,
    "image_head": 37_767_168,
}
COUNTS_7B = {
    **SHARED,
    "decoder": 6_910_365_696,
    "und_adaptor": 20_979_712,
    "gen_adaptor": 16_818_176,
    "image_head": 83_906_560,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [(JANUS_1_3B, COUNTS_1B), (JANUS_PRO_1B, COUNTS_1B), (JANUS_PRO_7B, COUNTS_7B)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_parameter_counts_of_the_released_models(config, expected):
    tree = jax.eval_shape(lambda key: init_params(JanusModel(config), key), jax.random.key(0))
    assert counts(tree) == expected
    parts = counts(tree["vq"])
    assert (parts["encoder"], parts["decoder"]) == (29_298_176, 42_449_795)


def test_init_agrees_with_flax(params):
    model = JanusModel(TINY)
    reference = jax.eval_shape(lambda key: model.init(key, method="init_all"), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, reference["params"])
    kernel = params["decoder"]["layers_1"]["mlp"]["down_proj"]["kernel"]
    branch = (2 * TINY.decoder.layers) ** -0.5  # residual branches start smaller
    assert float(jnp.std(kernel)) == pytest.approx(branch * TINY.decoder.ffw**-0.5, rel=0.03)
    scales = params["siglip"]["norm"]
    assert np.all(scales["scale"] == 1) and np.all(scales["bias"] == 0)
    leaves = [np.ravel(leaf)[:64] for leaf in jax.tree.leaves(params) if jnp.std(leaf) > 0]
    assert len({leaf.tobytes() for leaf in leaves}) == len(leaves)  # no draw is used twice


def test_cached_decode_equals_full_decode(params):
    model, length, prefill, size = JanusModel(TINY), 7, 4, 10
    embeds = jax.random.normal(jax.random.key(1), (2, length, WIDTH))
    positions = jnp.tile(jnp.arange(length), (2, 1))
    full, cache = run(model, params, (embeds, positions, causal_mask(length)), "decode")
    assert cache is None

    cache = init_cache(TINY, 2, size, jnp.float32)
    mask = jnp.tril(jnp.ones((1, length, size), bool))
    pieces = []
    for start, end in ((0, prefill), *((i, i + 1) for i in range(prefill, length))):
        args = (embeds[:, start:end], positions[:, start:end], mask[:, start:end], cache, start)
        hidden, cache = run(model, params, args, "decode")
        pieces.append(hidden)
    close(jnp.concatenate(pieces, 1), full)


def test_scanned_layers_refuse_a_cache(params):
    model = JanusModel(TINY.replace(scan_layers=True))
    args = (jnp.zeros((1, 1, WIDTH)), jnp.zeros((1, 1), int), jnp.ones((1, 1, 4), bool))
    cache = init_cache(TINY, 1, 4, jnp.float32)
    with pytest.raises(ValueError, match="unrolled"):
        model.apply({"params": params}, *args, cache, 0, method="decode")


def test_packed_rows_equal_separate_rows(params):
    model = JanusModel(TINY)
    rows = [jax.random.normal(jax.random.key(i), (1, 3, WIDTH)) for i in range(2)]
    padding = jnp.full((1, 2, WIDTH), 100.0)
    packed = jnp.concatenate([*rows, padding], 1)
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 0, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0, 0]])
    hidden, _ = run(model, params, (packed, positions, segment_mask(segments)), "decode")
    assert np.all(np.isfinite(hidden))
    for row, piece in zip(rows, (hidden[:, :3], hidden[:, 3:6]), strict=True):
        alone, _ = run(model, params, (row, positions[:, :3], causal_mask(3)), "decode")
        close(piece, alone)


def test_segment_mask():
    mask = segment_mask(jnp.array([[1, 1, 2, 0]]))[0].astype(int)
    np.testing.assert_array_equal(mask, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])


def test_grouped_query_attention_equals_repeated_heads():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, n, 8)) for i, n in enumerate((4, 2, 2)))
    grouped = attend(q, k, v, causal_mask(5))
    repeated = attend(q, jnp.repeat(k, 2, 2), jnp.repeat(v, 2, 2), causal_mask(5))
    close(grouped, repeated)
    decoder = TINY.decoder.replace(kv_heads=1, layers=1)
    config = TINY.replace(decoder=decoder)
    tree = jax.eval_shape(lambda key: init_params(JanusModel(config), key), jax.random.key(0))
    assert tree["decoder"]["layers_0"]["attn"]["k_proj"]["kernel"].shape == (
        WIDTH,
        TINY.decoder.head_dim,
    )


def test_bfloat16_policy_keeps_float32_parameters_and_logits(params):
    model = JanusModel(TINY, Policy(compute_dtype="bfloat16"))
    size = TINY.siglip.image_size
    pixels = jax.random.uniform(jax.random.key(1), (1, size, size, 3), minval=-1)

    @jax.jit
    def forward(params):
        apply = functools.partial(model.apply, {"params": params})
        embeds = apply(pixels, method="embed_images")
        positions, mask = jnp.arange(9)[None], causal_mask(9)
        hidden, _ = apply(embeds, positions, mask, method="decode")
        text, image = apply(hidden, method="text_logits"), apply(hidden, method="image_logits")
        return embeds, hidden, text, image, apply(pixels, method="vq_forward")["z"]

    made = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    low = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    made = jax.eval_shape(lambda key: init_params(JanusModel(TINY, low), key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("bfloat16")}

    embeds, hidden, text, image, z = forward(params)
    assert embeds.dtype == hidden.dtype == jnp.bfloat16
    assert text.dtype == image.dtype == z.dtype == jnp.float32
    gradients = jax.eval_shape(jax.grad(lambda p: jnp.sum(forward(p)[2])), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    exact = run(JanusModel(TINY), params, (pixels,), "embed_images")
    assert float(jnp.max(jnp.abs(embeds - exact))) < 0.05 * float(jnp.max(jnp.abs(exact)))


def test_unknown_remat_is_refused(params):
    with pytest.raises(ValueError, match="remat must be one of"):
        JanusModel(TINY, remat="some").init(jax.random.key(0), method="init_all")


def test_wrong_image_size_is_refused(params):
    for method in ("siglip_features", "encode_codes"):
        with pytest.raises(ValueError, match=r"\[B, 48, 48, 3\]"):
            run(JanusModel(TINY), params, (jnp.zeros((1, 32, 32, 3)),), method)


# --- image tokenizer


def test_tokenizer_losses_reach_the_right_parts(params):
    model = JanusModel(TINY)
    pixels = jax.random.uniform(jax.random.key(1), (2, 48, 48, 3), minval=-1)

    def gradient_size(loss):
        def value(vq):
            return loss(model.apply({"params": {"vq": vq}}, pixels, method="vq_forward"))

        gradients = jax.jit(jax.grad(value))(params["vq"])
        parts = {name: gradients[name] for name in ("encoder", "decoder", "quantize")}
        return {
            n: sum(float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(parts[n])) for n in parts
        }

    codebook = gradient_size(lambda out: out["codebook_loss"])
    assert codebook["quantize"] > 0 and codebook["encoder"] == codebook["decoder"] == 0
    commitment = gradient_size(lambda out: out["commitment_loss"])
    assert commitment["encoder"] > 0 and commitment["quantize"] == commitment["decoder"] == 0
    # Straight through: the reconstruction trains the encoder past the codes, but not the codebook.
    reconstruction = gradient_size(lambda out: jnp.mean((out["reconstruction"] - pixels) ** 2))
    assert reconstruction["encoder"] > 0 and reconstruction["decoder"] > 0
    assert reconstruction["quantize"] == 0


def test_tokenizer_forward(params):
    model = JanusModel(TINY)
    pixels = jax.random.uniform(jax.random.key(1), (2, 48, 48, 3), minval=-1)
    out = run(model, params, (pixels,), "vq_forward")
    np.testing.assert_array_equal(out["codes"], run(model, params, (pixels,), "encode_codes"))
    assert out["codes"].shape == (2, 36) and out["codes"].dtype == jnp.int32
    close(out["reconstruction"], run(model, params, (out["codes"],), "decode_codes"))
    close(jnp.linalg.norm(out["quantized"], axis=-1), 1.0)
    # The codes are the nearest of all unit vectors.
    book = normalize(params["vq"]["quantize"]["embedding"])
    unit = normalize(out["z"]).reshape(2, 36, 8)
    distances = jnp.sum((unit[:, :, None] - book) ** 2, -1)
    chosen = jnp.take_along_axis(distances, out["codes"][..., None], -1)[..., 0]
    close(chosen, jnp.min(distances, -1))
    close(out["codebook_loss"], jnp.mean(chosen) / 8)
    close(out["commitment_loss"], jnp.mean(chosen) / 8)

    warm_up = functools.partial(model.apply, quantize=False, method="vq_forward")
    plain = jax.jit(warm_up)({"params": params}, pixels)
    close(plain["z"], out["z"])
    assert float(jnp.max(jnp.abs(plain["reconstruction"] - out["reconstruction"]))) > 1e-3


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(3, 1, None), (3, 2, ((0, 1), (0, 1))), (1, 1, None)],
)
def test_convolution_implementations_agree(kernel_size, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 5))
    make = functools.partial(Conv, 7, kernel_size, stride, padding)
    lax, im2col = make(implementation="lax"), make(implementation="im2col")
    variables = lax.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, im2col.init(jax.random.key(1), x)
    )
    close(lax.apply(variables, x), im2col.apply(variables, x))
    loss = lambda conv: jax.grad(lambda v, x: jnp.sum(conv.apply(v, x) ** 2), argnums=(0, 1))
    jax.tree.map(
        functools.partial(close, tolerance=1e-3),
        loss(lax)(variables, x),
        loss(im2col)(variables, x),
    )


def test_normalize_matches_torch_and_has_a_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]])
    close(normalize(x), [[0.6, 0.8], [0, 0], [0.1, 0]])
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(normalize(x)))(x)))


# --- layers


def test_gelu_is_exact():
    close(gelu(jnp.array(1.0)), 0.8413447, 1e-7)  # the tanh approximation gives 0.8411920


def test_rms_norm_casts_before_the_weight():
    x = jnp.array([[1.0, 2.0, 3.0, 4.1]], jnp.bfloat16)
    scale = jnp.array([1.01, 0.7, 1.3, 0.9])
    y = RMSNorm(1e-6, jnp.bfloat16).apply({"params": {"scale": scale}}, x)
    x32 = np.asarray(x, np.float32)
    unit = x32 / np.sqrt(np.mean(x32**2) + 1e-6)
    expected = jnp.asarray(unit, jnp.bfloat16) * scale.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(expected, np.float32))


def test_einsum_gradients_and_their_dtypes():
    a = jax.random.normal(jax.random.key(0), (2, 5, 3))
    b = jax.random.normal(jax.random.key(1), (2, 3, 4))
    spec = "bij,bjk->bik"
    loss = lambda product: lambda a, b: jnp.sum(jnp.sin(product(spec, a, b)))
    native = jax.grad(loss(einsum), argnums=(0, 1))(a, b)
    jax.tree.map(close, native, jax.grad(loss(jnp.einsum), argnums=(0, 1))(a, b))

    low = (a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    jaxpr = jax.make_jaxpr(jax.grad(loss(einsum), argnums=(0, 1)))(*low)
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    # No product mixes dtypes: a float32 operand would run the whole product in float32.
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}
    assert len(products) >= 2


def test_remat_dots_saves_products(params):
    """In the backward pass "full" recomputes every product, "dots" only those of attention."""

    def products(remat):
        model = JanusModel(TINY.replace(scan_layers=False), remat=remat)
        embeds, positions = jnp.zeros((1, 4, WIDTH)), jnp.arange(4)[None]

        def loss(decoder):
            variables = {"params": {"decoder": decoder}}
            return jnp.sum(
                model.apply(variables, embeds, positions, causal_mask(4), method="decode")[0]
            )

        return str(jax.make_jaxpr(jax.grad(loss))(params["decoder"])).count("dot_general[")

    assert products("none") < products("dots") < products("full")
