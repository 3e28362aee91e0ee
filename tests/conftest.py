"""Fixtures of all tests, markers, and eight simulated devices, so that sharding is tested on any machine."""

import gc
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

# Programs are compiled once a session, in this process and in those that tests start; none stays in the cache of
# the user.
if "PYTEST_XDIST_WORKER" in os.environ:  # the process that started this worker made the directory
    programs = os.environ["JAX_COMPILATION_CACHE_DIR"]
else:
    _PROGRAMS = tempfile.TemporaryDirectory(prefix="janus_jax_tests_")
    programs = os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
jax.config.update("jax_compilation_cache_dir", programs)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device

NOT_QUICK = ("slow", "heavy", "subprocess", "torch", "multidevice")


def pytest_addoption(parser):
    names = ", ".join(NOT_QUICK)
    parser.addoption("--quick", action="store_true", help=f"only tests without a marker of {names}")


def _can_import(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: sys.modules has None for it
        return False


def pytest_collection_modifyitems(config, items):
    if not all(map(_can_import, ("torch", "transformers"))):
        skip = pytest.mark.skip(reason="needs torch and transformers")
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(skip)
    if config.getoption("quick"):
        left_out = [item for item in items if any(map(item.get_closest_marker, NOT_QUICK))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True)
def _free_log():
    """The lock of `logging` is nobody's after a test: threads of a later one would wait for it for ever."""
    yield
    held = 0
    while logging._lock._is_owned():
        logging._lock.release()
        held += 1
    assert not held, "an exception, such as that of a signal, has left logging's lock held"


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Programs of other modules are of little use, and all of them together are gigabytes."""
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc").exists() else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > 3 * 2**30:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working directory, empty: code that a model should not run would leave something here."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("JANUS_JAX_CACHE", str(tmp_path / "cache"))
    return place


@pytest.fixture(scope="session")
def smoke_model(tmp_path_factory):
    """A model directory that `finetune:*_smoke` can start from; nobody may write to it."""
    from smoke_model import write_smoke_model

    return write_smoke_model(tmp_path_factory.mktemp("smoke") / "model")


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
