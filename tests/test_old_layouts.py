"""Models and runs that version 0.1.0 wrote before its packages were reordered still load and convert.

The archive holds `model/` (`save_model`) and `run/` (two stages of `StageCheckpoints`) of a tiny network
with scanned layers; every parameter follows from its name, so what is read can be compared.
"""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax import Janus
from janus_jax.checkpoints import load_model
from janus_jax.interop import TABLES, load_checkpoint
from janus_jax.interop.conversion import open_source, write_native, write_torch
from janus_jax.models import unstack_layers

pytestmark = pytest.mark.heavy

ARCHIVE = Path(__file__).parent / "data" / "golden" / "version_0_1_0.zip"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    directory = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(ARCHIVE, directory)
    return directory


def written(path, leaf):
    """The array that was written under this path."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    values = (np.arange(251) - 125) / 1000 + name.endswith("scale")
    return np.resize(np.roll(values, len(name)), leaf.shape).astype(np.float32)


def assert_as_written(loaded):
    assert loaded.config.name == "old" and loaded.config.scan_layers
    jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.testing.assert_array_equal(leaf, written(path, leaf)), loaded.params
    )


@pytest.mark.parametrize("name", ["model", "run", "run/checkpoints/stage1"])
def test_every_layout_loads_as_it_was_written(old, name, capsys):
    loaded = load_checkpoint(old / name)
    assert_as_written(loaded)
    found = {k: loaded.origin.get(k) for k in ("from", "run", "stage", "step")}
    wanted = {
        "model": {"from": "a test", "run": None, "stage": None, "step": None},
        "run": {"from": None, "run": "old", "stage": "stage2", "step": 5},
        "run/checkpoints/stage1": {"from": None, "run": "old", "stage": "stage1", "step": 3},
    }
    assert found == wanted[name]
    assert capsys.readouterr().err == ""  # checksums and metadata are those that are expected


def test_an_old_run_draws_and_answers(old):
    janus = Janus.load(old / "run")
    (picture,) = janus.generate("a red cat", n=1, seed=0)
    assert picture.size == (4, 4)
    assert isinstance(janus.answer(picture, "a cat", max_new_tokens=3), str)


@pytest.mark.parametrize("to", TABLES)
def test_an_old_run_converts_to_pytorch_and_back(old, tmp_path, to):
    source = open_source(old / "run")
    write_torch(source, tmp_path / "torch", TABLES[to], *source.processor())
    source = open_source(tmp_path / "torch")
    write_native(source, tmp_path / "back", *source.processor())
    back, run = load_model(tmp_path / "back"), load_model(old / "run")
    wanted = unstack_layers(run.params, run.config)
    jax.tree.map(np.testing.assert_array_equal, back.params, wanted)
    assert back.processor == run.processor and back.tokenizer_json == run.tokenizer_json
