"""Eight simulated devices, so that every test of sharding runs on any machine."""

import os
import shutil
from pathlib import Path

import jax
import pytest

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # nothing of a test stays in the user's cache

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working directory, empty: code that a model should not run would leave something here."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("JANUS_JAX_CACHE", str(tmp_path / "cache"))
    return place


@pytest.fixture(scope="module")
def tokenizer():
    from janus_jax.processing import build_word_tokenizer

    return build_word_tokenizer("a red cat".split())


@pytest.fixture
def official(tmp_path, tokenizer):
    """The golden checkpoint with a tokenizer, in a directory of its own."""
    directory = tmp_path / "official"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, directory / name)
    (directory / "tokenizer.json").write_text(tokenizer.to_json())
    return directory
