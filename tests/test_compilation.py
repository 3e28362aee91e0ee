"""Compiled programs are kept on disk, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus_jax.inference import enable_compilation_cache

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import jax, jax.monitoring
from janus_jax.inference import enable_compilation_cache
print(enable_compilation_cache(seconds=0))
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: (x @ x).sum() + 41)(jax.numpy.ones((8, 8))).block_until_ready()
print(sum(name.endswith("cache_hits") for name in hits))
"""


@pytest.mark.subprocess
def test_programs_are_found_again_by_the_next_process(tmp_path):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env.pop("JAX_COMPILATION_CACHE_DIR")
    run = lambda: (
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
        )
        .stdout.strip()
        .splitlines()
    )
    directory = tmp_path / "janus_jax" / "programs"
    assert run()[0] == str(directory)
    assert list(directory.iterdir())
    assert int(run()[1]) > 0


def test_the_user_decides_and_a_bad_place_is_no_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert enable_compilation_cache() == tmp_path / "mine"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert enable_compilation_cache() is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    assert enable_compilation_cache(tmp_path / "file") is None
    assert "not kept" in capsys.readouterr().err


def test_no_home_is_a_warning(monkeypatch, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr("janus_jax.inference.compilation.user_cache", lambda: None)
    assert enable_compilation_cache() is None
    assert capsys.readouterr().err == (
        "warning: compiled programs are not kept: there is no home directory\n"
    )
