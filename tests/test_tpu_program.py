"""Drawing, compiled for a TPU: what a step costs beside reading weights and cache must be nothing.

Needs libtpu, which compiles without a TPU, and is left out where that is not installed.
"""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.compiled import tpu as tpu_program
from janus_jax.config import PRESETS, Policy
from janus_jax.inference import image_engine
from janus_jax.parallel import make_mesh

pytestmark = pytest.mark.skipif(not tpu_program.has_libtpu(), reason="needs libtpu")

# So many that no layer's cache fits into the memory on the chip: where all fits, anything goes.
IMAGES, PROMPT, LAYERS = 960, 20, 2
TINY = PRESETS["janus-tiny"]
CONFIG = TINY.replace(
    vq=TINY.vq.replace(image_size=72),  # 81 codes
    decoder=TINY.decoder.replace(
        width=256, ffw=640, layers=LAYERS, heads=2, kv_heads=2, head_dim=128
    ),
)
POLICY = Policy("bfloat16", "bfloat16")


@pytest.fixture(scope="module")
def devices():
    return tpu_program.topology_devices("v5e:2x2")


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    for module in (image_engine, tpu_program):
        monkeypatch.setattr(module, "CACHE_BUCKET", 32)


def compiled_report(devices, mesh=None, int8=()):
    compiled, weights, _ = tpu_program.compile_drawing(
        CONFIG, POLICY, devices, IMAGES, PROMPT, mesh, int8, codes_only=True
    )
    shapes = tpu_program.shapes_of(CONFIG, weights, IMAGES, PROMPT, mesh)
    return tpu_program.report(compiled.as_text(), shapes)


@pytest.mark.parametrize(
    "int8", [(), ("cache",), ("weights", "cache")], ids=["bfloat16", "int8 cache", "int8"]
)
def test_no_step_copies_the_cache(devices, int8):
    found = compiled_report(devices, int8=int8)
    assert [(loop["slots"], loop["steps"]) for loop in found["loops"]] == [
        (PROMPT + 32, 32),
        (PROMPT + 64, 32),
        (PROMPT + 80, 16),
    ]
    for loop in found["loops"]:
        assert not loop["cache_copies"]
        assert not loop["weight_copies"]
        assert not loop["other_full_size"]
        assert not loop["collectives"]


def test_heads_over_a_mesh_reduce_twice_a_layer(devices):
    found = compiled_report(devices, make_mesh(data=2, tensor=2, devices=devices))
    assert not found["copies_cache"]
    activations = IMAGES // 2 * 2 * CONFIG.decoder.width * 4
    for loop in found["loops"]:
        assert loop["collectives"].pop("all-reduce")["count"] == 2 * LAYERS
        # Only the best code of each half of the codebook is exchanged, not the logits.
        assert all(total["bytes"] < activations for total in loop["collectives"].values())


def test_a_program_that_copies_the_cache_is_found(devices):
    """Layers that are scanned, with the cache in and out: the form that sampling must not have."""
    decoder, slots = CONFIG.decoder, PROMPT + 32
    rows = (2, IMAGES, decoder.kv_heads)
    layers = 4

    def draw(weights, cache, x):
        def step(carry, index):
            def layer(x, both):
                weight, keys = both
                x = jnp.tanh(x @ weight)
                new = x.reshape(*rows, 1, decoder.head_dim)
                keys = jax.lax.dynamic_update_slice_in_dim(keys, new, index, axis=3)
                scores = jax.nn.softmax(jnp.einsum("cbkth,cbksh->cbkts", new, keys))
                seen = jnp.einsum("cbkts,cbksh->cbkth", scores, keys)
                return seen.reshape(x.shape), keys

            cache, x = carry
            x, cache = jax.lax.scan(layer, x, (weights, cache))
            return (cache, x), None

        return jax.lax.scan(step, (cache, x), jnp.arange(32))[0]

    here = jax.sharding.SingleDeviceSharding(devices[0])
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=here)
    compiled = jax.jit(draw, donate_argnums=1).lower(
        shape(layers, decoder.width, decoder.width),
        shape(layers, *rows, slots, decoder.head_dim),
        shape(2 * IMAGES, decoder.width),
    )
    per_cache = 2 * IMAGES * decoder.kv_heads * slots * decoder.head_dim
    shapes = tpu_program.Shapes({slots: per_cache}, set())
    (loop,) = tpu_program.report(compiled.compile().as_text(), shapes)["loops"]
    assert loop["steps"] == 32
    assert loop["cache_copies"]
