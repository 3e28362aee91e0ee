"""Eight simulated devices, so that every test of sharding runs on any machine."""

import os

import jax
import pytest

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # nothing of a test stays in the user's cache

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working directory, empty: code that a model should not run would leave something here."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("JANUS_JAX_CACHE", str(tmp_path / "cache"))
    return place
