"""What `pip install .` puts on a machine: the commands, the configs, the assets, types, one version."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import janus_jax

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
START = "import sys; sys.argv[0] = {name!r}; from {module} import command; command()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what git tracks or would, without network."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a command of the unpacked wheel, outside of the source tree."""
    site, elsewhere = (tmp_path_factory.mktemp(name) for name in ("site", "elsewhere"))
    wheel.extractall(site)

    def run(name, *flags):
        (entry,) = [line for line in scripts(wheel) if line.startswith(f"{name} = ")]
        module = entry.partition(" = ")[2].partition(":")[0]
        code = START.format(name=f"/usr/bin/{name}", module=module)
        env = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code, *flags]
        done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
        assert not any(elsewhere.iterdir())
        return done

    return run


def metadata(wheel, name):
    (path,) = [n for n in wheel.namelist() if n.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def scripts(wheel):
    return metadata(wheel, "entry_points.txt").splitlines()[1:]


def test_the_wheel_has_every_module_and_data_file(wheel):
    library = ROOT / "janus_jax"
    wanted = [p for p in library.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {str(p.relative_to(ROOT)) for p in wanted} <= set(wheel.namelist())
    assert {"janus_jax/py.typed", "janus_jax/configs/janus_tiny.py"} <= set(wheel.namelist())
    assert any(name.startswith("janus_jax/emoji/assets/") for name in wheel.namelist())
    others = {n.split("/")[0] for n in wheel.namelist()} - {"janus_jax"}
    assert [name.partition("-")[2] for name in others] == [f"{janus_jax.__version__}.dist-info"]


def test_the_version_is_written_once(wheel):
    assert f"\nVersion: {janus_jax.__version__}\n" in metadata(wheel, "METADATA")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"] and "version" not in project


@pytest.mark.parametrize(
    "name",
    ["janus-train", "janus-sample", "janus-convert", "janus-data", "janus-evaluate", "janus-serve"],
)
def test_every_command_explains_itself_by_its_own_name(installed, name):
    done = installed(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"  {name} " in done.stdout
    assert not re.search(r"(train|sample|weights)\.py|python -m", done.stdout)


def test_an_installation_has_the_configs(installed):
    done = installed("janus-train", "--config", "janus_tiny:smok")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Did you mean 'smoke'?" in done.stderr
    assert "janus-train --help" in installed("janus-train", "--workdirr=x").stderr
    done = installed("janus-train", "--config.stages.stage2.stepz=3")  # of the default config
    assert done.returncode == 2 and "Did you mean 'steps'?" in done.stderr
