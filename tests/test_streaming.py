"""`Janus.load` reads weights one after the other: the numbers, what is in memory meanwhile, and damage."""

import itertools
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from dummies_model import LONGER, make_processor, random_params
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.checkpoints import LazyArray, load_leaves, save_model, storage
from janus_jax.checkpoints.lazy import read_lazily
from janus_jax.config import Policy
from janus_jax.errors import UserError
from janus_jax.files import DamagedError
from janus_jax.inference import Janus, fuse_params
from janus_jax.interop import TABLES, load_checkpoint, native_directory
from janus_jax.interop.conversion import cache as cache_module
from janus_jax.interop.conversion import open_checkpoint, open_source, write_torch
from janus_jax.models import stack_layers
from janus_jax.parallel import make_mesh

pytestmark = pytest.mark.heavy

# With what PyTorch can express.
CONFIG = LONGER.replace(
    vq=LONGER.vq.replace(
        image_size=32, ch=32, ch_mult=(1, 1, 1, 1, 1), norm_groups=32, patch_size=1
    ),
)
FORMATS = ("unrolled", "stacked", "official", "hf", "shards")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(format, dtype of the files) -> directory of the same model."""
    base, processor = tmp_path_factory.mktemp("models"), make_processor(CONFIG)

    def make(form, dtype):
        place = base / f"{form}-{dtype}"
        if place.exists():
            return place
        params = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), random_params(CONFIG))
        if form in ("unrolled", "stacked"):
            config = CONFIG.replace(scan_layers=form == "stacked")
            params = stack_layers(params, config) if config.scan_layers else params
            text = processor.tokenizer.to_json()
            save_model(place, config, processor.config.to_dict(), text, params)
            return place
        table, size = TABLES["hf" if form == "hf" else "official"], 2 * 10**9
        source = open_source(make("unrolled", dtype))
        size = 2**16 if form == "shards" else size
        write_torch(source, place, table, processor.config, processor.tokenizer, shard_bytes=size)
        return place

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache_module.ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("int8", [(), ("weights", "cache")], ids=["", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMATS)
def test_weights_are_those_of_loading_whole(models, cache, form, dtype, int8):
    for stored in ("float32", "bfloat16"):
        directory = models(form, stored)
        whole = open_source(directory)
        params = load_leaves(cache_module.nest(whole.arrays))  # all of it, on the host
        want = Janus(whole.config, params, make_processor(CONFIG), Policy(dtype, dtype), int8=int8)
        got = Janus.load(directory, dtype=dtype, int8=int8)
        assert_same(got.weights, want.weights)
        assert_same(got.generation_params, want.generation_params)
        assert got.num_params == want.num_params
    assert not cache.exists()  # nothing is converted


def test_weights_on_a_mesh_are_those_of_loading_whole(models):
    mesh = make_mesh(tensor=2, devices=jax.devices()[:2])
    directory = models("stacked", "bfloat16")
    loaded = load_checkpoint(directory)
    want = Janus(loaded.config, loaded.params, make_processor(CONFIG), mesh=mesh)
    assert_same(Janus.load(directory, mesh=mesh).weights, want.weights)


@pytest.mark.parametrize("form", FORMATS)
def test_a_layer_or_a_table_is_in_memory_at_a_time(models, form):
    """Each array is loaded once, and gone when those of the next layer come."""
    loaded = open_checkpoint(models(form, "bfloat16"))
    alive: dict[int, int] = {}
    peak, seen = 0, []

    def watch(path, leaf):
        def note(value, index=None):
            nonlocal peak
            seen.append((path, index))
            key = next(numbers)
            alive[key] = value.nbytes
            weakref.finalize(value, alive.pop, key)
            peak = max(peak, sum(alive.values()))
            return value

        part = leaf.load_part
        return LazyArray(
            leaf.shape,
            leaf.dtype,
            lambda: note(leaf.load()),
            load_part=part and (lambda i: note(part(i), i)),
        )

    numbers = itertools.count()
    params = jax.tree_util.tree_map_with_path(watch, loaded.params)
    fuse_params(params, loaded.config, Policy("float32"), int8=True, donate_params=True)
    decoder = random_params(CONFIG)["decoder"]
    layer = sum(x.size for x in jax.tree.leaves(decoder["layers_0"])) * 2
    largest = max(x.nbytes for x in jax.tree.leaves(loaded.params["vq"]))
    assert peak <= max(layer, largest, 2 * decoder["lm_head"]["kernel"].size)
    assert len(set(seen)) == len(seen)
    stacked = loaded.config.scan_layers
    count = len(jax.tree.leaves(random_params(CONFIG)))
    assert stacked or len(seen) == count


def test_of_stacked_layers_only_the_bytes_of_one_are_read(tmp_path):
    """Also of what a mesh has written in pieces, and of the dtypes that weights have."""
    values = np.random.default_rng(0).standard_normal((6, 10, 12), np.float32)
    mesh = make_mesh(fsdp=4, tensor=2)
    cut = {"rows": P(None, "fsdp"), "both": P(None, "tensor", "fsdp"), "layers": P("tensor")}
    tree = {"whole": values, "low": values.astype(jnp.bfloat16), "vector": values[:, 0, 0]}
    tree |= {"table": values[:4].reshape(24, 20)}
    size = {"rows": values[:, :8], "both": values[:, :, :8], "layers": values}
    tree |= {n: jax.device_put(size[n], NamedSharding(mesh, spec)) for n, spec in cut.items()}
    storage.save_tree(tmp_path / "tree", tree)
    lazy = read_lazily(tmp_path / "tree", storage.read_shapes(tmp_path / "tree"))
    for name, array in tree.items():
        for i in range(len(array)):
            part = lazy[name][i]
            assert (part.shape, part.dtype) == (array.shape[1:], array.dtype)
            assert_same(part.load(), np.asarray(array)[i])
        assert_same(lazy[name].load(), array)


def test_compressed_layers_are_read_as_well(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 40, 50), np.float32)
    handler = ocp.PyTreeCheckpointHandler(use_compression=True)
    with storage.quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "tree", args=ocp.args.PyTreeSave({"a": values}))
    lazy = read_lazily(tmp_path / "tree", storage.read_shapes(tmp_path / "tree"))["a"]
    assert_same(lazy[2].load(), values[2])


def truncate(params):
    """All files of arrays lose their second half."""
    for path in params.glob("ocdbt.process_0/d/*"):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("form", ["unrolled", "stacked"])
def test_damage_that_no_checksum_tells_of_is_one_line(models, tmp_path, form):
    shutil.copytree(models(form, "float32"), tmp_path / "model")
    (tmp_path / "model" / "checksums.json").unlink()
    truncate(tmp_path / "model" / "params")
    with pytest.raises(DamagedError, match="damaged") as error:
        Janus.load(tmp_path / "model")
    assert "\n" not in str(error.value) and "copy or convert the model again" in str(error.value)


@pytest.mark.parametrize("form", ["unrolled", "stacked"])
def test_damage_is_found_by_checksums_before_anything_is_loaded(models, tmp_path, form):
    shutil.copytree(models(form, "float32"), tmp_path / "model")
    path = max(
        (tmp_path / "model/params/ocdbt.process_0/d").iterdir(), key=lambda p: p.stat().st_size
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="differs from its checksum"):
        Janus.load(tmp_path / "model")
    Janus.load(tmp_path / "model", verify=False)


def test_a_damaged_step_of_a_run_is_passed_over(models, tmp_path, capsys):
    model, run = models("stacked", "float32"), tmp_path / "run"
    for step in (5, 10):
        shutil.copytree(model / "params", run / f"checkpoints/first/{step}/params")
    for name in ("janus.json", "tokenizer.json"):
        shutil.copyfile(model / name, run / name)
    (run / "stages.json").write_text('["first"]')
    truncate(run / "checkpoints/first/10/params")
    loaded = Janus.load(run)
    said = capsys.readouterr().err
    assert "step 5 of first is used instead" in said and said.count("\n") == 1
    assert_same(loaded.weights, Janus.load(model).weights)


def test_values_that_are_not_finite_are_all_named(models, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(models("official", "float32"), tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    names = [
        n for n in state if n.endswith(("layers.1.mlp.down_proj.weight", "embed_tokens.weight"))
    ]
    for name in names:
        state[name].flat[5] = np.inf
    save_file(state, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match="2 non-finite") as error:
        Janus.load(tmp_path / "model")
    assert all(name in str(error.value) for name in names) and len(names) == 2


def test_a_conversion_that_is_there_is_used(models, cache, monkeypatch):
    directory = models("official", "bfloat16")
    want = Janus.load(directory).weights
    native_directory(directory)
    monkeypatch.setattr(cache_module, "open_source", lambda *_, **__: pytest.fail("read anew"))
    assert_same(Janus.load(directory).weights, want)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_no_view_of_a_pickled_file(models, tmp_path, dtype):
    """A mapped file that somebody changes or cuts would change the model, or end the process."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(models("official", dtype), tmp_path / "model")
    safetensors = tmp_path / "model" / "model.safetensors"
    torch.save(load_file(safetensors), tmp_path / "model" / "pytorch_model.bin")
    safetensors.unlink()
    loaded = Janus.load(tmp_path / "model", dtype=dtype)
    with (tmp_path / "model" / "pytorch_model.bin").open("r+b") as file:
        file.truncate(0)
    assert_same(loaded.weights, Janus.load(models("official", dtype), dtype=dtype).weights)
