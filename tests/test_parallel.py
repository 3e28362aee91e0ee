import functools
import http.server
import importlib.util
import math
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from janus_jax.config import JANUS_PRO_1B, JANUS_PRO_7B, JANUS_TINY
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, causal_mask, init_params
from janus_jax.parallel import (
    AXES,
    batch_sharding,
    global_batch,
    make_mesh,
    param_shardings,
    param_specs,
    process_rows,
    replicated,
    rules,
    shard_params,
    state_shardings,
)
from janus_jax.parallel.multihost import initialize, is_multiprocess
from janus_jax.parallel.rules import MESH_AXES, RULES, matching_rules, path_name

pytestmark = pytest.mark.multidevice

CONFIGS = {
    "1b-scanned": JANUS_PRO_1B.replace(scan_layers=True),
    "7b-scanned": JANUS_PRO_7B.replace(scan_layers=True),
    "tiny-scanned": JANUS_TINY.replace(scan_layers=True),
    "tiny-unrolled": JANUS_TINY.replace(scan_layers=False),
}
TINY = CONFIGS["tiny-scanned"]


@functools.cache
def shapes(name):
    return jax.eval_shape(
        lambda key: init_params(JanusModel(CONFIGS[name]), key), jax.random.key(0)
    )


def random_params(*parts):
    """Small random arrays in the shapes of some parts of the tiny model; compiles nothing."""
    rng = np.random.default_rng(0)
    one = lambda leaf: 0.1 * rng.standard_normal(leaf.shape, dtype=np.float32)
    return jax.tree.map(one, {part: shapes("tiny-scanned")[part] for part in parts})


def flat(tree, **kwargs):
    return {path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(tree, **kwargs)[0]}


def flat_specs(tree, mesh):
    return flat(param_specs(tree, mesh), is_leaf=lambda x: isinstance(x, P))


def test_one_device_is_the_1x1x1_mesh():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert mesh.axis_names == AXES


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 2, 1), (1, 2, 1)),
        ((4, 1, -1), (4, 1, 2)),
    ],
)
def test_mesh_sizes(sizes, shape):
    mesh = make_mesh(*sizes)
    assert tuple(mesh.shape.values()) == shape
    assert next(iter(mesh.devices.flat)) == jax.devices()[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((16, 1, 1), "needs 16 devices, there are 8"),
        ((3, -1, 1), "does not divide the 8 devices"),
        ((-1, -1, 1), "only one"),
        ((0, 1, 1), "must be positive"),
        ((1, -2, 1), "must be positive"),
    ],
)
def test_bad_mesh_sizes_are_user_errors(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(*sizes)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_matches_exactly_one_rule(name):
    counts = {path: len(matching_rules(path)) for path in flat(shapes(name))}
    assert {path: n for path, n in counts.items() if n != 1} == {}


def test_every_rule_is_used():
    names = [*flat(shapes("1b-scanned")), *flat(shapes("tiny-unrolled")), "aux/text_tower/kernel"]
    assert [p for p, _ in RULES if not any(re.fullmatch(p, n) for n in names)] == []
    used = {axis for _, axes in RULES for axis in axes if axis}
    assert used == set(MESH_AXES)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_specs_fit_the_shapes_and_use_no_mesh_axis_twice(name, sizes):
    mesh = make_mesh(*sizes)
    specs = flat_specs(shapes(name), mesh)
    for path, leaf in flat(shapes(name)).items():
        spec = specs[path]
        axes = [a for entry in spec for a in ((entry,) if isinstance(entry, str) else entry or ())]
        assert len(axes) == len(set(axes)), path
        assert len(spec) in (0, leaf.ndim), path
        for entry, size in zip(spec, leaf.shape, strict=False):
            names = (entry,) if isinstance(entry, str) else entry or ()
            assert size % math.prod(mesh.shape[a] for a in names) == 0, path


def test_embeddings_are_split_on_one_dimension_only():
    specs = flat_specs(shapes("1b-scanned"), make_mesh(2, 2, 2))
    tables = {path: spec for path, spec in specs.items() if path.endswith("/embedding")}
    assert "decoder/embed/embedding" in tables
    for path, spec in tables.items():
        assert sum(entry is not None for entry in spec) <= 1, path


def test_fsdp_splits_nearly_everything():
    mesh = make_mesh(1, 8, 1)
    for name in ("1b-scanned", "7b-scanned"):
        params = shapes(name)
        split = jax.tree.map(
            lambda leaf, s: math.prod(s.shard_shape(leaf.shape)),
            params,
            param_shardings(params, mesh),
        )
        total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        assert sum(jax.tree.leaves(split)) < total * (1 / 8 + 0.05)


def test_scanned_and_unrolled_layers_are_split_alike():
    mesh = make_mesh(2, 2, 2)
    scanned = flat_specs(shapes("tiny-scanned"), mesh)
    unrolled = flat_specs(shapes("tiny-unrolled"), mesh)
    for path, spec in scanned.items():
        if "/layers/" in path or "/blocks/" in path:
            one = unrolled[path.replace("/layers/", "/layers_0/").replace("/blocks/", "/blocks_0/")]
            assert spec == P(None, *one), path


def test_what_does_not_divide_stays_whole():
    mesh = make_mesh(1, 2, 4)
    leaf = jax.ShapeDtypeStruct
    params = {"decoder": {"embed": {"embedding": leaf((10, 4), jnp.float32)}}}
    assert flat_specs(params, mesh) == {"decoder/embed/embedding": P("fsdp", None)}
    params = {"decoder": {"lm_head": {"kernel": leaf((7, 6), jnp.float32)}}}
    assert flat_specs(params, mesh) == {"decoder/lm_head/kernel": P(None, None)}


def test_unknown_parameter_and_wrong_rank_are_user_errors():
    mesh = make_mesh(1, 2, 1)
    leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    with pytest.raises(UserError, match=r"'decoder/lm_head/lora' matches no"):
        param_specs({"decoder": {"lm_head": {"lora": leaf}}}, mesh)
    with pytest.raises(UserError, match=r"decoder/final_norm/scale.*\(4, 4\)"):
        param_specs({"decoder": {"final_norm": {"scale": leaf}}}, mesh)


def test_two_matching_rules_are_a_user_error(monkeypatch):
    extra = (re.compile("decoder/.+"), ())
    monkeypatch.setattr(rules, "_COMPILED", (*rules._COMPILED, extra))
    leaf = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(UserError, match="matches 2"):
        param_specs({"decoder": {"final_norm": {"scale": leaf}}}, make_mesh(1, 2, 1))


def test_trainer_extras_are_replicated():
    params = {"aux": {"text_tower": {"proj": {"kernel": np.zeros((8, 8), np.float32)}}}}
    assert flat_specs(params, make_mesh(1, 4, 2)) == {"aux/text_tower/proj/kernel": P()}


def test_optimizer_state_follows_the_parameters():
    mesh = make_mesh(2, 2, 2)
    params = shapes("tiny-scanned")
    labels = {key: "frozen" if key in ("vq", "siglip") else "train" for key in params}
    tx = optax.partition(
        {
            "train": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
            "frozen": optax.set_to_zero(),
        },
        labels,
    )
    state = {"opt": jax.eval_shape(tx.init, params), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    wanted = flat(param_shardings(params, mesh))
    found = flat(state_shardings(state, mesh))
    moments = {p: s for p, s in found.items() if "/mu/" in p or "/nu/" in p}
    assert len(moments) == 2 * sum(p.split("/")[0] not in ("vq", "siglip") for p in wanted)
    for path, sharding in moments.items():
        param = path.split("/mu/")[-1].split("/nu/")[-1]
        assert sharding == wanted[param], path
    assert found["step"] == replicated(mesh)
    assert all(s == replicated(mesh) for p, s in found.items() if p.endswith("count"))


def test_state_that_mirrors_a_parameter_with_another_rank_is_replicated():
    state = {"v_row": {"decoder": {"lm_head": {"kernel": jax.ShapeDtypeStruct((8,), jnp.float32)}}}}
    mesh = make_mesh(1, 2, 2)
    assert flat(state_shardings(state, mesh)) == {"v_row/decoder/lm_head/kernel": replicated(mesh)}


def test_global_batch_lies_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    batch = {"ids": np.arange(24).reshape(8, 3), "step": np.int32(7)}
    placed = global_batch(batch, mesh)
    assert placed["ids"].sharding == batch_sharding(mesh)
    assert placed["ids"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed["ids"], batch["ids"])
    assert int(placed["step"]) == 7
    with pytest.raises(UserError, match="'ids' has 6 rows"):
        global_batch({"ids": np.zeros((6, 3))}, mesh)


@pytest.mark.parametrize(
    ("sizes", "processes", "wanted"),
    [
        ((1, 8, 1), 2, [range(8), range(8, 16)]),
        ((2, 2, 2), 4, [range(i, i + 4) for i in (0, 4, 8, 12)]),
        ((1, 1, 8), 2, [range(16), range(16)]),  # `tensor` over two processes: both hold all rows
        ((1, 2, 4), 4, [range(8), range(8), range(8, 16), range(8, 16)]),
        ((8, 1, 1), 1, [range(16)]),
    ],
)
def test_the_mesh_says_which_rows_a_process_reads(sizes, processes, wanted):
    mesh, each = make_mesh(*sizes), 8 // processes
    parts = [jax.devices()[i : i + each] for i in range(0, 8, each)]
    assert [process_rows(mesh, 16, part).tolist() for part in parts] == [list(w) for w in wanted]
    # As they lie on the devices, in whatever order those are.
    turned = Mesh(mesh.devices.ravel()[::-1].reshape(sizes), mesh.axis_names)
    placed = jax.device_put(np.arange(16), batch_sharding(turned))
    for part in parts:
        held = {int(x) for s in placed.addressable_shards if s.device in part for x in s.data}
        assert process_rows(turned, 16, part).tolist() == sorted(held)


def test_rows_that_do_not_divide_over_the_mesh_are_refused():
    with pytest.raises(UserError, match="6 rows do not divide over 4 devices"):
        process_rows(make_mesh(2, 2, 2), 6)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_sharded_forward_and_gradients_equal_one_device(sizes):
    model = JanusModel(TINY)
    params = random_params("decoder", "image_head")
    ids = np.asarray(jax.random.randint(jax.random.key(1), (8, 6), 0, TINY.decoder.vocab_size))

    def loss(params, ids):
        run = functools.partial(model.apply, {"params": params})
        x = run(ids, method="embed_text")
        positions = jnp.broadcast_to(jnp.arange(6), ids.shape)
        mask = jnp.broadcast_to(causal_mask(6), (8, 6, 6))
        hidden, _ = run(x, positions, mask, method="decode")
        logits = run(hidden, method="text_logits")
        image = run(hidden, method="image_logits")
        return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2) + jnp.mean(image**2)

    step = jax.value_and_grad(loss)
    value, grads = jax.jit(step)(params, ids)
    mesh = make_mesh(*sizes)
    sharded, batch = shard_params(params, mesh), global_batch(ids, mesh)
    value8, grads8 = jax.jit(step, out_shardings=(None, param_shardings(params, mesh)))(
        sharded, batch
    )
    np.testing.assert_allclose(value8, value, rtol=1e-5)
    flat8 = flat(grads8)
    for path, grad in flat(grads).items():
        np.testing.assert_allclose(flat8[path], grad, atol=1e-5, err_msg=path)


POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # any pod
        ({"JOB_COMPLETION_INDEX": "0"}, False),
        (POD, True),
        ({**POD, "JAX_NUM_PROCESSES": "4"}, True),
        ({**POD, "JAX_NUM_PROCESSES": "1"}, False),
        ({**POD, "TPU_WORKER_HOSTNAMES": "localhost"}, False),  # of a slice of one machine
    ],
)
def test_multiprocess_environments(env, expected):
    assert is_multiprocess(env) is expected


def test_initialize_leaves_a_single_process_alone(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: pytest.fail("called"))
    assert initialize({}) is False
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS"):
        initialize({"SLURM_STEP_NUM_TASKS": "many"})


def test_initialize_passes_the_environment_on(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **k: calls.append(k))
    address = "127.0.0.1:1"
    env = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    assert initialize(env) is True
    ((passed),) = calls
    wanted = {"coordinator_address": address, "num_processes": 2, "process_id": 1}
    assert {k: passed[k] for k in wanted} == wanted
    assert passed["initialization_timeout"] > 120


def test_a_pod_is_the_process_of_its_index(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **k: calls.append(k))
    address = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "4"}
    assert initialize(POD | address) is True
    assert initialize(POD | address | {"JAX_PROCESS_ID": "3"}) is True
    assert [call["process_id"] for call in calls] == [2, 3]
    # What JAX itself would ask, it has no need to.
    assert all(call["cluster_detection_method"] == "deactivate" for call in calls)


def test_a_pod_that_cannot_ask_for_the_others_says_what_to_set(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("called"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Indexed Job: set JAX_COORDINATOR_ADDRESS.*JAX_NUM_PROC"):
        initialize(POD)


def test_what_kubernetes_refuses_is_one_line(monkeypatch):
    def refuse(**_):
        raise RuntimeError("Kubernetes API Error: 403 - Forbidden\nIt appears that\nthe account")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"cannot join .* 403 - Forbidden It appears") as error:
        initialize(POD)
    assert "\n" not in str(error.value)


def test_jax_reads_the_same_variables_of_a_pod(monkeypatch):
    from jax._src.clusters import K8sCluster

    monkeypatch.setenv("JOB_COMPLETION_INDEX", POD["JOB_COMPLETION_INDEX"])
    assert K8sCluster.get_process_id() == 2
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert K8sCluster.is_env_present() is False


def test_machines_of_a_slice_may_be_listed_in_a_file(tmp_path):
    (tmp_path / "hosts").write_text("a:8471,b:8471\n")
    assert is_multiprocess({"TPU_PROCESS_ADDRESSES_PATH": str(tmp_path / "hosts")})
    assert not is_multiprocess({"TPU_PROCESS_ADDRESSES_PATH": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("machines", "expected"), [("1:a:10.0.0.1,2:b:10.0.0.2", True), ("a", False)]
)
def test_compute_engine_says_how_many_machines_a_slice_has(machines, expected):
    asked = []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path.rpartition("/")[2], self.headers["Metadata-Flavor"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(machines.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        assert not is_multiprocess(env)
        assert not is_multiprocess(env | {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"})
        assert asked == []  # only a machine with TPU chips asks
        assert is_multiprocess(env | {"TPU_ML_PLATFORM": "JAX"}) is expected
        server.shutdown()
    assert asked == [("worker-network-endpoints", "Google")]
