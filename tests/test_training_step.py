"""One training step: the same numbers however it is cut, sharded, accumulated or recomputed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import CONFIG, random_params
from jax.sharding import PartitionSpec as P

from benchmarks.on_device.training import packed_rows
from janus_jax.adapters import LORA_PARAMS, LoraOptions, add_lora
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, Layout, stack_layers
from janus_jax.models.blocks import POLICIES
from janus_jax.parallel import (
    MeshLayout,
    global_batch,
    make_mesh,
    param_shardings,
    state_shardings,
)
from janus_jax.training import TRAINABLE, Stage, init_state, make_step
from janus_jax.training.state import Dtypes, with_dtypes

pytestmark = [pytest.mark.heavy, pytest.mark.multidevice]

SCANNED = CONFIG.replace(scan_layers=True)
ROWS, STEPS = 8, 5
MESHES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2), "1x4x2": (1, 4, 2)}


def make_stage(name="stage2", rows=ROWS, **fields):
    fields = {"ratio": (2, 3, 5), "batch_size": rows, **fields}
    return Stage(name, "janus", TRAINABLE[name], STEPS, 1e-3, 0, **fields)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def batches():
    """One for each step; the last has padding where the others have sequences."""
    batch = packed_rows(SCANNED, ROWS)
    orders = [np.random.default_rng(i).permutation(ROWS) for i in range(STEPS)]
    found = [{k: v[order] for k, v in batch.items()} for order in orders]
    last = found[-1]
    emptied = {k: v.copy() for k, v in last.items()}
    for name in ("segment_ids", "target_weights", "gen_weights"):
        emptied[name][:3] = 0
    return [*found[:-1], emptied]


def start(stage, mesh=None, dtypes=None, seed=0):
    params = stack_layers(random_params(CONFIG), SCANNED)
    params = jax.tree.map(jnp.asarray, params)
    if lora := LoraOptions.of(stage.options):
        params = add_lora(params, lora, jax.random.key(0))
    if dtypes:
        params = with_dtypes(params, stage, dtypes)
    if mesh:
        params = jax.device_put(params, param_shardings(params, mesh))
    state, frozen = init_state(stage, params)
    if mesh:
        state = jax.device_put(state, state_shardings(state, mesh))
    return state, frozen


def first_moments(state):
    """Sums of past gradients: what tells gradients apart that have the same norm."""
    mu = next(
        x.mu
        for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(x, "mu")
    )
    return jax.tree.map(np.asarray, mu)


def run(stage, mesh=None, dtypes=None, count=STEPS, data=None, **fields):
    """(metrics of each step, first moments after the first step, state)."""
    layout = MeshLayout(mesh) if mesh else Layout()
    model = JanusModel(SCANNED, layout=layout, **fields)
    step = make_step(model, stage, pad_id=0)
    state, frozen = start(stage, mesh, dtypes)
    found, moments = [], None
    for i, batch in enumerate((data or batches())[:count]):
        batch = global_batch(batch, mesh) if mesh else batch
        state, metrics = step(state, frozen, batch, i)
        found.append({k: float(v) for k, v in metrics.items()})
        if moments is None:
            moments = first_moments(state)
    return found, moments, state


@functools.cache
def on_one_device(name):
    return run(make_stage(name))


def assert_same(found, want, rtol=1e-5):
    for got, expected in zip(found[0], want[0], strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=rtol, err_msg=name)
    compare = lambda a, b: np.testing.assert_allclose(
        a, b, rtol=0, atol=rtol * max(np.abs(b).max(), 1e-6)
    )
    jax.tree.map(compare, found[1], want[1])


def _every_pair():
    """Each mesh with each stage; a few of them always, the rest with the slow tests."""
    always = {("8x1x1", "stage1"), ("1x8x1", "stage2"), ("2x2x2", "stage3"), ("1x4x2", "stage2")}
    for mesh in MESHES:
        for name in ("stage1", "stage2", "stage3"):
            marks = () if (mesh, name) in always else pytest.mark.slow
            yield pytest.param(mesh, name, id=f"{mesh}-{name}", marks=marks)


@pytest.mark.parametrize(("sizes", "name"), list(_every_pair()))
def test_a_mesh_gives_what_one_device_gives(sizes, name):
    mesh = make_mesh(*MESHES[sizes])
    found = run(make_stage(name), mesh, targets_at_once=40, pictures_at_once=1, remat="full")
    assert_same(found, on_one_device(name))


def lora_stage(rows=ROWS):
    options = {"lora": {"rank": 4, "targets": ("decoder/**/*_proj", "image_head/*")}}
    return dataclasses.replace(make_stage(rows=rows), trainable=LORA_PARAMS, options=options)


@pytest.mark.parametrize("sizes", ["2x2x2", pytest.param("1x8x1", marks=pytest.mark.slow)])
def test_an_adapter_on_a_mesh_is_one_on_one_device(sizes):
    want = run(lora_stage())
    found = run(lora_stage(), make_mesh(*MESHES[sizes]), targets_at_once=40, remat="full")
    # b is zero at first, so a has no gradient then.
    assert_same(found, want)
    assert found[0][0]["loss"] != found[0][2]["loss"]
    specs = {
        path[-1].key: leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(found[2].trainable)
        if path[-2].key == "q_proj"
    }
    if sizes == "2x2x2":
        assert specs == {"lora_a": P(None, "fsdp"), "lora_b": P(None, None, "tensor")}


def test_the_state_stays_where_its_parameters_lie():
    mesh = make_mesh(2, 2, 2)
    stage = make_stage()
    _, _, state = run(stage, mesh, count=2)
    wanted = state_shardings(state, mesh)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


@pytest.mark.parametrize(
    "fields",
    [
        {"targets_at_once": 1},
        {"targets_at_once": 7, "pictures_at_once": 2},
        {"pictures_at_once": 1},
        {"attention": "dense"},
        {"remat": "full"},
        *(
            pytest.param({"remat": name}, marks=pytest.mark.slow)
            for name in POLICIES
            if name not in ("none", "full")
        ),
    ],
    ids=str,
)
def test_slices_and_policies_change_nothing(fields):
    stage = make_stage("stage3")
    assert_same(run(stage, count=2, **fields), _first(on_one_device("stage3"), 2))


@pytest.mark.parametrize(("parts", "name"), [(2, "stage1"), (8, "stage3")])
def test_parts_of_a_batch_add_up(parts, name):
    """Also where the parts have unlike numbers of targets, and one has none."""
    found = run(make_stage(name, accumulate=parts))
    assert_same(found, on_one_device(name))


def test_parts_of_a_batch_add_up_on_a_mesh():
    found = run(make_stage(accumulate=2), make_mesh(1, 2, 2))
    assert_same(found, on_one_device("stage2"))


def test_parts_add_up_by_sequence():
    options = {"reduction": "sequence"}
    want = run(make_stage(options=options), count=2)
    assert_same(run(make_stage(options=options, accumulate=4), count=2), want)


def test_parts_that_do_not_divide_the_batch():
    with pytest.raises(UserError, match=r"accumulate must divide batch_size \(8\), not 3"):
        make_stage(accumulate=3)


def test_codes_instead_of_pictures_are_the_same():
    stage, model = make_stage(), JanusModel(SCANNED)
    params = {"params": stack_layers(random_params(CONFIG), SCANNED)}
    encoded = []
    for batch in batches()[:2]:
        codes = np.asarray(model.apply(params, batch, method="target_codes"))
        rest = {k: v for k, v in batch.items() if k != "gen_images"}
        encoded.append({**rest, "gen_codes": codes})
    assert_same(run(stage, data=encoded), _first(on_one_device("stage2"), 2))


def test_frozen_weights_in_bfloat16_change_no_number_of_a_bfloat16_step():
    """They are rounded where they are used in any case; what trains, norms and the tokenizer stay."""
    from janus_jax.config import Policy

    stage, policy = make_stage("stage1"), Policy("float32", "bfloat16")
    want = run(stage, count=2, policy=policy)
    found = run(stage, count=2, policy=policy, dtypes=Dtypes("float32", "bfloat16"))
    assert found[0] == want[0]
    _, frozen = start(stage, dtypes=Dtypes("float32", "bfloat16"))
    kinds = {
        jax.tree_util.keystr(path, simple=True, separator="/"): str(x.dtype)
        for path, x in jax.tree_util.tree_flatten_with_path(frozen)[0]
    }
    assert kinds["decoder/layers/attn/q_proj/kernel"] == "bfloat16"
    assert kinds["siglip/pos_embed"] == "bfloat16"
    assert kinds["decoder/layers/attn_norm/scale"] == "float32"
    assert {v for k, v in kinds.items() if k.startswith("vq/")} == {"float32"}
    assert "und_adaptor/fc1/kernel" not in kinds


def test_what_a_stage_trains_comes_back_in_full():
    stage3 = make_stage("stage3")
    low = Dtypes("float32", "bfloat16")
    params = with_dtypes(random_params(CONFIG), make_stage("stage1"), low)
    again = with_dtypes(params, stage3, low)
    assert again["decoder"]["layers_0"]["mlp"]["up_proj"]["kernel"].dtype == jnp.float32


def test_a_step_that_is_not_finite_changes_only_its_count():
    stage, model = make_stage(), JanusModel(SCANNED)
    step = make_step(model, stage, pad_id=0)
    state, frozen = start(stage)
    state, metrics = step(state, frozen, batches()[0], 0)
    assert float(metrics["skipped"]) == 0
    before = jax.tree.map(np.array, state)
    bad = batches()[1] | {"target_weights": batches()[1]["target_weights"] * np.float32(np.inf)}
    state, metrics = step(state, frozen, bad, 1)
    assert float(metrics["skipped"]) == 1 and not np.isfinite(float(metrics["loss"]))
    assert int(state.step) == int(before.step) + 1
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=before.step), before)
    state, metrics = step(state, frozen, batches()[1], 2)
    assert float(metrics["skipped"]) == 0 and np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize("moment", ["mu", "nu"])
def test_moments_in_bfloat16(moment):
    stage = make_stage(options={"optimizer": {f"{moment}_dtype": "bfloat16"}})
    found = run(stage, count=3)
    adam = next(
        x
        for x in jax.tree.leaves(found[2].opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(x, "mu")
    )
    kinds = {
        name: {str(x.dtype) for x in jax.tree.leaves(getattr(adam, name))} for name in ("mu", "nu")
    }
    other = "nu" if moment == "mu" else "mu"
    assert kinds == {moment: {"bfloat16"}, other: {"float32"}}
    # The first step's numbers do not know of it; later ones hardly.
    want = _first(on_one_device("stage2"), 3)
    assert found[0][0] == want[0][0]
    np.testing.assert_allclose(found[0][2]["loss"], want[0][2]["loss"], rtol=1e-3)
    assert found[0][2] != want[0][2]


def test_another_dtype_of_moments_is_refused():
    with pytest.raises(UserError, match="nu_dtype must be float32, bfloat16 or empty"):
        make_stage(options={"optimizer": {"nu_dtype": "int8"}})


def _first(result, count):
    return result[0][:count], *result[1:]
