"""What a fine-tune freezes has the bits that it began with after a hundred steps, in whichever dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_finetune import recipe

from janus_jax.adapters import LORA_PARAMS, quantize
from janus_jax.checkpoints import StageCheckpoints, load_model
from janus_jax.param_groups import split_params
from janus_jax.run import train

pytestmark = pytest.mark.slow

STEPS = 100


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tuned(name, model, place, frozen_dtype):
    """The parameters of the checkpoint after `STEPS` steps."""
    config = recipe(name, steps=STEPS, batch_size=2)
    config.init_from, config.policy.frozen_dtype = str(model), frozen_dtype
    config.eval.held_out_every, config.log.save_every = 50, STEPS
    train(config, place, quiet=True)
    with StageCheckpoints(place / "checkpoints" / "finetune") as checkpoints:
        return checkpoints.restore_params(STEPS)


def leaves(tree):
    found = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in found}


def assert_bits(found, wanted):
    found, wanted = leaves(found), leaves(wanted)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path].dtype == value.dtype, path
        assert found[path].tobytes() == value.tobytes(), path


def rounded(path, x):
    """A frozen weight in bfloat16: kernels and tables, but for those of the image tokenizer."""
    is_large = path[-1].key in ("kernel", "embedding", "pos_embed") and path[0].key != "vq"
    return np.asarray(x, jnp.bfloat16) if is_large else np.asarray(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_adapter_leaves_every_bit_of_its_base(dtype, smoke_model, tmp_path):
    base = load_model(smoke_model).params
    found = tuned("lora_smoke", smoke_model, tmp_path / "run", dtype)
    adapter, frozen = split_params(found, LORA_PARAMS)
    wanted = base if dtype != "int8" else quantize(base)
    if dtype != "float32":
        in_int8 = lambda x: x.dtype == np.int8
        wanted = jax.tree_util.tree_map_with_path(
            lambda path, x: x if in_int8(x) else rounded(path, x), wanted
        )
    kinds = {str(x.dtype) for x in leaves(frozen).values()}
    assert dtype in kinds
    # The constant alpha / rank of each module is beside the factors, and frozen.
    assert_bits(*(without_scales(tree) for tree in (frozen, wanted)))
    for path, value in leaves(adapter).items():
        assert value.dtype == np.float32 and value.any(), path
    # What samples: the other parts have the numbers of the base, in the dtype that they were kept in.
    handed_on = load_model(tmp_path / "run").params
    assert_bits(
        {name: handed_on[name] for name in base if name != "decoder"},
        {name: wanted[name] for name in base if name != "decoder"},
    )
    changed = [p for p, x in leaves(handed_on["decoder"]).items() if is_changed(p, x, base)]
    assert {path.split("/")[-2] for path in changed} >= {"q_proj", "down_proj"}


def without_scales(tree):
    return {path: x for path, x in leaves(tree).items() if not path.endswith("lora_scale")}


def is_changed(path, x, base):
    return not np.array_equal(np.float32(x), leaves(base["decoder"])[path])


def test_the_full_recipe_leaves_every_bit_of_siglip_and_the_image_tokenizer(smoke_model, tmp_path):
    base = load_model(smoke_model).params
    found = tuned("full_smoke", smoke_model, tmp_path / "run", "float32")
    for name in base:
        if name in ("siglip", "vq"):
            assert_bits(found[name], base[name])
            continue
        pairs = zip(leaves(found[name]).items(), leaves(base[name]).values(), strict=True)
        same = [path for (path, x), y in pairs if np.array_equal(x, y)]
        assert not same, (name, same)
