"""Products of large models on a CPU are calls of oneDNN, where the installed XLA can make them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import CODES, CONFIG, WORDS, random_params, score

from janus_jax import onednn
from janus_jax.config import PRESETS, Policy
from janus_jax.inference import ImageEngine, cpu, make_sampling_params
from janus_jax.inference.fused_params import fuse_params
from janus_jax.inference.image_engine import Prompts
from janus_jax.inference.matmul import matmul
from janus_jax.models import JanusModel
from janus_jax.models.einsum import project
from janus_jax.parallel import make_mesh
from janus_jax.processing import Processor, ProcessorConfig, build_word_tokenizer
from janus_jax.training import TRAINABLE, Stage, make_step

pytestmark = pytest.mark.heavy

FULL = PRESETS["janus-pro-1b"].decoder
_INFO = Path("/proc/cpuinfo")
_CPU = _INFO.read_text() if _INFO.exists() else ""
needs_onednn = pytest.mark.skipif(not cpu.has_onednn(), reason="this XLA does not call oneDNN")
# The width of the 1B model, all else as small as it goes.
WIDE = CONFIG.replace(
    scan_layers=False, decoder=FULL.replace(layers=1, vocab_size=CONFIG.decoder.vocab_size)
)


def test_only_one_cpu_and_a_large_model_ask_for_it(monkeypatch):
    monkeypatch.setattr(cpu, "has_onednn", lambda: True)
    assert cpu.compiler_options(FULL)
    assert cpu.compiler_options(PRESETS["janus-tiny"].decoder) is None
    assert cpu.compiler_options(FULL, platform="tpu") is None
    assert cpu.compiler_options(FULL, int8=True) is None
    assert cpu.compiler_options(FULL, make_mesh(data=2, devices=jax.devices()[:2])) is None
    monkeypatch.setattr(cpu, "has_onednn", lambda: False)
    assert cpu.compiler_options(FULL) is None


def test_an_accelerator_and_an_xla_without_the_options_do_not_have_it(monkeypatch):
    ask = onednn.has_onednn.__wrapped__
    monkeypatch.setattr(onednn, "OPTIONS", {"xla_cpu_no_such_option": True})
    assert ask() is False
    monkeypatch.setattr(onednn, "OPTIONS", None)  # XLA's defaults have no call either
    assert ask() is False
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "jit", None)  # nothing may be compiled
    assert ask() is False


def test_a_wider_weight_decides_the_dtype_of_a_product():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 8)), jnp.bfloat16)
    weight = jnp.asarray(rng.standard_normal((5, 8)), jnp.float32)
    expected = np.asarray(x, np.float32) @ np.asarray(weight).T
    y = matmul(x, weight)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert matmul(x, weight, dtype=jnp.bfloat16).dtype == jnp.bfloat16


@needs_onednn
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_its_products_are_rounded_once(dtype, rows):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, 2048)), dtype)
    weight = jnp.asarray(rng.standard_normal((8192, 2048)) / 45, dtype)
    multiply = jax.jit(
        lambda x, w: matmul(x, w, dtype=dtype), compiler_options=cpu.compiler_options(FULL)
    )
    assert "__onednn$matmul" in multiply.lower(x, weight).compile().as_text()
    y = multiply(x, weight)
    assert y.dtype == dtype
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    # Half a unit in the last place, and what float32 sums lose.
    bound = np.abs(exact) * float(jnp.finfo(dtype).eps) / 2 + 2e-5
    assert (np.abs(np.asarray(y, np.float64) - exact) <= bound).all()


@needs_onednn
def test_a_wide_layer_is_as_exact_as_without():
    params = random_params(WIDE)
    processor = Processor(ProcessorConfig.from_model(WIDE), build_word_tokenizer(WORDS))

    def logits(dtype, platform=None):
        policy = Policy(dtype, dtype)
        engine = ImageEngine(WIDE, policy, "float32", platform=platform)
        weights = fuse_params(params, WIDE, policy, platform=platform)
        return score(engine, weights, processor, CODES)

    exact = logits("float32", "tpu")  # what is not for a CPU has XLA's default options
    error = lambda x: np.sqrt(np.mean((x - exact) ** 2)) / exact.std()
    assert error(logits("float32")) < 1e-5
    # In bfloat16 both differ from float32 by rounding; oneDNN rounds no more often.
    assert error(logits("bfloat16")) < 1.1 * error(logits("bfloat16", "tpu")) < 0.03


@needs_onednn
@pytest.mark.skipif(
    not any(name in _CPU for name in ("avx512_bf16", "amx_bf16")),
    reason="a processor without bfloat16 multiplies in float32",
)
def test_no_step_casts_a_weight():
    """One product in float32 of weights in bfloat16 would write them all, each step."""
    policy, shape = Policy("bfloat16", "bfloat16"), jax.ShapeDtypeStruct
    engine = ImageEngine(WIDE, policy, "float32")
    weights = jax.eval_shape(lambda params: fuse_params(params, WIDE, policy), random_params(WIDE))
    prompts = Prompts(shape((3, 6), jnp.int32), shape((3, 6), bool), shape((2, 2), jnp.int32))
    codes = shape((2, WIDE.vq.num_codes), jnp.int32)
    sampling, _ = make_sampling_params(WIDE.vq.codebook_size, cfg_weight=2.0)
    program = engine.score.lower(weights, prompts, codes, sampling).compile().as_text()
    D, F, K, H = FULL.width, FULL.ffw, FULL.kv_heads, FULL.head_dim
    whole = ((3 * K * H, D), (K, 3, H, D), (D, D), (2 * F, D), (2, F, D), (D, F))
    names = [",".join(map(str, sizes)) for sizes in whole]
    assert [f"bf16[{name}]" in program for name in names] == [True] * len(names)
    assert [f"f32[{name}]" in program for name in names] == [False] * len(names)


# ---------------------------------------------------------------- training


def loss_of_products(x, weight):
    return jnp.sum(jnp.sin(project(x, weight)))


@pytest.mark.skipif(not onednn.has_onednn(), reason="this XLA does not call oneDNN")
def test_all_three_products_of_training_are_its_and_rounded_once():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((64, 1024)), jnp.bfloat16)
    weight = jnp.asarray(rng.standard_normal((1024, 1536)) / 32, jnp.bfloat16)
    step = onednn.jit(jax.value_and_grad(loss_of_products, (0, 1)), asks=True)
    text = step.lower(x, weight).compile().as_text()
    assert text.count(f'custom_call_target="{onednn.CALL}"') == 3
    value, gradients = step(x, weight)
    x64, w64 = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    y = x64 @ w64
    np.testing.assert_allclose(value, np.sin(y).sum(), rtol=1e-4, atol=0.1)
    cosine = np.asarray(
        jnp.asarray(np.cos(y), jnp.bfloat16), np.float64
    )  # as the gradient comes in
    for got, exact in zip(gradients, (cosine @ w64.T, x64.T @ cosine), strict=True):
        assert got.dtype == jnp.bfloat16
        # Half a unit in the last place, and where the rounding of a cosine is a near tie.
        error = np.abs(np.asarray(got, np.float64) - exact)
        assert error.max() <= np.abs(exact).max() * float(jnp.finfo(jnp.bfloat16).eps)
        assert np.sqrt((error**2).mean()) < 3e-3 * exact.std()


def test_only_arrays_on_one_cpu_make_the_program_ask(monkeypatch):
    monkeypatch.setattr(onednn, "has_onednn", lambda: True)
    asking = onednn.jit(lambda x: 2 * x, asks=True)
    chosen = lambda *arguments: asking._chosen(arguments) is asking._onednn
    x, shape = jnp.ones(8), jax.ShapeDtypeStruct
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert chosen(x) and chosen({"step": x}, np.ones(2))
    assert chosen(shape((8,), "float32", sharding=here))
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    both = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert not chosen(jax.device_put(x, both))
    assert not chosen(shape((8,), "float32", sharding=both))
    assert not chosen(shape((8,), "float32")) and not chosen(np.ones(8))
    inside = []
    assert jax.jit(lambda x: (inside.append(chosen(x)), asking(x))[1])(x)[0] == 2
    assert inside == [False]
    monkeypatch.setattr(onednn, "has_onednn", lambda: False)
    assert not chosen(x)


def test_who_does_not_ask_has_a_plain_program():
    plain = onednn.jit(lambda x: 2 * x, asks=False)
    assert type(plain) is type(jax.jit(lambda x: x))


def test_wide_models_in_bfloat16_are_worth_it():
    assert onednn.pays_in_training(2048, "bfloat16")
    assert not onednn.pays_in_training(2048, "float32")
    assert not onednn.pays_in_training(PRESETS["janus-tiny"].decoder.width, "bfloat16")


@pytest.mark.parametrize(
    ("width", "dtype", "asks"), [(2048, "bfloat16", True), (2048, "float32", False)]
)
def test_the_step_of_a_stage_asks_for_it(width, dtype, asks, monkeypatch):
    asked = []
    monkeypatch.setattr(onednn, "jit", lambda f, asks, **options: asked.append(asks))
    config = WIDE.replace(decoder=WIDE.decoder.replace(width=width))
    stage = Stage("stage2", "janus", TRAINABLE["stage2"], 1, 1e-4, 0, 1, ratio=(1, 1, 1))
    make_step(JanusModel(config, Policy("float32", dtype)), stage, pad_id=0)
    assert asked == [asks]
