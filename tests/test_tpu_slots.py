"""The server's blocks, compiled for a TPU: that they compile, and that no step copies what was filled before.

Needs libtpu, which compiles without a TPU, and is left out where that is not installed.
"""

import pytest

from benchmarks.compiled import tpu
from benchmarks.compiled.slots import compile_block, make_engine
from janus_jax.config import PRESETS
from janus_jax.parallel import make_mesh

pytestmark = pytest.mark.skipif(not tpu.has_libtpu(), reason="needs libtpu")

TINY = PRESETS["janus-tiny"]
CONFIG = TINY.replace(
    scan_layers=False,
    decoder=TINY.decoder.replace(width=256, ffw=640, layers=2, heads=2, kv_heads=2, head_dim=128),
)
PLACES, SLOTS = 16, 3200  # so many that no layer's cache fits into the memory on the chip


@pytest.fixture(scope="module")
def devices():
    return tpu.topology_devices("v5e:2x2")


@pytest.mark.parametrize(
    ("codes", "whole", "int8"),
    [(True, True, False), (True, False, False), (False, True, False), (True, True, True)],
    ids=["pictures", "half of them", "answers", "int8"],
)
def test_a_block_only_reads_what_was_filled_before(devices, codes, whole, int8):
    engine = make_engine(CONFIG, codes, SLOTS, int8=int8)
    rows, length = (PLACES, engine.slots) if whole else (PLACES // 2, 1792)
    found, compiled, _ = compile_block(CONFIG, engine, devices, PLACES, rows, length)
    (loop,) = found["loops"]
    assert loop["slots"] == length and not loop["collectives"]
    assert not loop["cache_copies"]
    pool = compiled.memory_analysis()
    assert pool.alias_size_in_bytes > pool.output_size_in_bytes * 0.99, "the pool is donated"


def test_on_a_mesh_too(devices):
    mesh = make_mesh(data=2, tensor=2, devices=devices)
    engine = make_engine(CONFIG, True, SLOTS, mesh)
    shape = (devices, PLACES, PLACES, engine.slots, mesh)
    found, _, _ = compile_block(CONFIG, engine, *shape)
    assert not found["copies_cache"]
    assert found["loops"]
