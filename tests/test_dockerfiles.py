"""The Dockerfiles: what they say of files, packages, flags and ports is true, and they agree with the docs."""

import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from dockerfiles import environment, is_ignored, read_dockerfile

from janus_jax.cli import serve
from janus_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IGNORE = (ROOT / ".dockerignore").read_text("utf-8")
NAMES = ("Dockerfile", "Dockerfile.cuda")
BUILD = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"


@pytest.fixture(params=NAMES)
def instructions(request):
    return read_dockerfile((ROOT / request.param).read_text("utf-8"))


def texts(instructions, name):
    return [i.text for i in instructions if i.name == name]


def one(instructions, name):
    (found,) = [i for i in instructions if i.name == name]
    return found


def flags_of(instructions):
    """The flags of the server that the image starts with."""
    return one(instructions, "ENTRYPOINT").words[3:]


def parsed(monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["janus-serve", *flags])
    return serve.parse_flags()


def test_python_is_one_that_the_package_runs_on(instructions):
    version = re.fullmatch(r"python:(3\.\d+)-slim", one(instructions, "FROM").text)[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_extras_are_there(instructions):
    command = " ".join(texts(instructions, "RUN"))
    (extra,) = re.findall(r'"\.\[(\w+)\]"', command)
    assert extra in PROJECT["optional-dependencies"]
    for name in environment(instructions).get("CUDA", "").split():
        assert '"jax[${CUDA}]"' in command
        assert name in importlib.metadata.metadata("jax").get_all("Provides-Extra")


def copied(instructions):
    """The files that COPY puts into the image, relative to the root."""
    found = []
    for text in texts(instructions, "COPY"):
        for source in text.split()[:-1]:
            path = ROOT / source
            assert path.exists(), source
            found += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return [str(path.relative_to(ROOT)) for path in found]


def test_files_that_are_copied_are_not_ignored(instructions):
    bytecode = {name for name in copied(instructions) if "__pycache__" in name}
    ignored = {name for name in copied(instructions) if is_ignored(name, IGNORE)}
    assert ignored == bytecode


@pytest.mark.parametrize(
    "name", [".git/config", ".env", "runs/a/model", "tests/conftest.py", "models/x.safetensors"]
)
def test_nothing_else_gets_into_the_image(name):
    assert is_ignored(name, IGNORE)


@pytest.mark.subprocess
def test_files_that_are_copied_are_enough(tmp_path):
    """For a wheel with all that an installation has."""
    first, second = (copied(read_dockerfile((ROOT / name).read_text("utf-8"))) for name in NAMES)
    assert sorted(first) == sorted(second)
    source, out = tmp_path / "source", tmp_path / "out"
    names = [name for name in first if not is_ignored(name, IGNORE)]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    found = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("janus_jax/")} <= found


def test_what_it_starts(instructions, monkeypatch):
    monkeypatch.delenv("JANUS_API_KEY", raising=False)
    start = one(instructions, "ENTRYPOINT")
    assert start.text.startswith(
        "["
    )  # else a shell would be process 1, and SIGTERM would not arrive
    assert start.words[:2] == ["python", "-m"]
    assert importlib.util.find_spec(f"{start.words[2]}.__main__")
    flags = parsed(monkeypatch, flags_of(instructions))
    assert (flags.host, flags.api_key) == ("0.0.0.0", None)
    assert flags.checkpoint in one(instructions, "VOLUME").words
    assert one(instructions, "EXPOSE").text == str(flags.port)


def test_it_ends_without_a_key(instructions, monkeypatch):
    pytest.importorskip("starlette")
    from janus_jax.serving.http.security import check_binding

    assert not re.search("key", str(environment(instructions)), re.IGNORECASE)
    monkeypatch.delenv("JANUS_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["janus-serve", *flags_of(instructions)])
    with pytest.raises(UserError, match="JANUS_API_KEY"):
        serve.main()
    monkeypatch.setenv("JANUS_API_KEY", "a-key")
    flags = parsed(monkeypatch, flags_of(instructions))
    check_binding(flags.host, flags.api_key, flags.insecure)


def test_it_does_not_run_as_root_and_can_write_its_cache(instructions):
    names = [i.name for i in instructions]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    user = one(instructions, "USER").text.split(":")[0]
    command = " ".join(texts(instructions, "RUN"))
    assert user.isdecimal() and int(user) > 0 and f"--uid {user}" in command
    cache = environment(instructions)["XDG_CACHE_HOME"]
    assert f"chown janus:janus {cache}" in command
    # What is done to a place after it was declared a volume is lost.
    assert cache in one(instructions, "VOLUME").words
    assert names.index("VOLUME") > max(i for i, name in enumerate(names) if name == "RUN")


@pytest.mark.subprocess
def test_whether_it_is_healthy(instructions, monkeypatch):
    pytest.importorskip("uvicorn")
    pytest.importorskip("httpx")
    from dummies_serving import FakeEngine, app_of, server_of

    _, option, code = one(instructions, "HEALTHCHECK").words
    port = str(parsed(monkeypatch, flags_of(instructions)).port)
    assert option == "-c" and code.count(port) == 1
    with server_of(app_of(FakeEngine(), key="a-key")) as (_, free):
        check = [sys.executable, "-c", code.replace(port, str(free))]
        assert subprocess.run(check, capture_output=True).returncode == 0
        missing = [*check[:2], check[2].replace("/health", "/helth")]
        assert subprocess.run(missing, capture_output=True).returncode == 1
    assert subprocess.run(check, capture_output=True).returncode == 1


def test_the_commands_of_the_docs(monkeypatch):
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    section = page.partition("\n## In a container\n")[2].partition("\n## ")[0]
    commands = " ".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL)).replace("\\\n", " ")
    built = re.findall(r"docker build -t (\S+)(?: -f (\S+))? \.\s", commands)
    assert {file or "Dockerfile" for _, file in built} == set(NAMES)
    runs = re.findall(r"docker run (.*)", commands)
    assert len(runs) == len(built)
    for line, (image, file) in zip(runs, built, strict=True):
        words = shlex.split(line)
        at = words.index(image)
        options, flags = " ".join(words[:at]), words[at + 1 :]
        instructions = read_dockerfile((ROOT / (file or "Dockerfile")).read_text("utf-8"))
        started = parsed(monkeypatch, [*flags_of(instructions), *flags])
        assert f"-p 127.0.0.1:8000:{started.port} " in options and "-e JANUS_API_KEY" in options
        for volume in one(instructions, "VOLUME").words:
            assert re.search(rf"-v \S+:{volume}(:ro)? ", options + " "), volume
        stop = int(re.search(r"--stop-timeout (\d+)", options)[1])
        assert stop >= started.timeout + serve._DRAIN
