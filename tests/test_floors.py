"""Layers: a part of the package imports only from layers below its own, never from a neighbour."""

import ast
from pathlib import Path

import pytest

import janus_jax

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "janus_jax"

# On the ground floor `console` carries `errors`, which carries `config`, which carries `models`.
FLOORS = {
    "console": -0.1,
    "errors": 0.0,
    "gcs": 0.03,
    "untrusted": 0.05,
    "files": 0.07,
    "places": 0.1,
    "freeze_sets": 0.1,
    "registry": 0.1,
    "param_groups": 0.1,
    "batch": 0.1,
    "pixels": 0.1,
    "onednn": 0.1,
    "signals": 0.1,
    "config": 0.1,
    "models": 0.2,
    "adapters": 0.5,
    "parallel": 1,
    "processing": 1,
    "checkpoints": 1,
    "interop": 2,
    "data": 2,
    "training": 3,
    "inference": 3,
    "evaluation": 3,
    "emoji": 3.5,
    "sampling": 4,
    "run": 4,
    "data_tools": 4.5,
    "serving": 4.5,
    "configs": 2,  # named by the run, and jax-free
    "cli": 5,
    "harness": 5,
}
# What is named in registries and configs, and imported by nothing general.
PLUG_INS = {"emoji"}
ENTRY_POINTS = {"train", "sample", "convert_torch_weights", "configs", "tests"}
NEVER = {"tensorflow", "tensorflow_datasets"}  # tfds is imported where it is used
HEAVY = {"torch", "transformers", "tensorboardX", "huggingface_hub", "qwix", "libtpu", *NEVER}
# Harnesses of others, which import what is written for them, and the page: room -> the package.
GUESTS = {"harness": "lmms_eval", "serving": "gradio"}
HEAVY |= {"etils", "fsspec", "gcsfs", "google", "google_crc32c"}


def imports(tree: ast.AST, package: str) -> list[tuple[str, bool]]:
    """(module, at module level) of every import; relative ones resolved against `package`."""
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            )
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from janus_jax import models` names a room too.
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, id(node) not in inner) for name in names]
    return found


def _at_home(module: str) -> str:
    """The names that the package itself offers are those of `inference`."""
    package, _, name = module.partition(".")
    offered = package == "janus_jax" and name in {*janus_jax.__all__} - {"__version__"}
    return f"{package}.inference.{name}" if offered else module


def violations(source: str, path: str) -> list[str]:
    """What a library file at `path` (relative to janus_jax) imports against the rules."""
    parts = Path(path).with_suffix("").parts
    room = parts[0]
    package = ".".join(["janus_jax", *parts[:-1]])
    problems = []
    for module, top_level in imports(ast.parse(source), package):
        first, *rest = _at_home(module).split(".")
        if first in ENTRY_POINTS:
            problems.append(f"{path} imports the entry point {module}")
        if top_level and first in HEAVY:
            problems.append(f"{path} imports {module} at module level")
        if first == "tensorflow" or (first == "torch" and room != "interop"):
            problems.append(f"{path} imports {module}")
        if first in GUESTS.values() and GUESTS.get(room) != first:
            problems.append(f"{path} imports {module}: only what is written for it may")
        if first == "janus_jax" and rest and rest[0] in FLOORS and rest[0] != room:
            if FLOORS[rest[0]] >= FLOORS[room]:
                problems.append(f"{path} imports {module} of the same or a higher floor")
            if rest[0] in PLUG_INS:
                problems.append(
                    f"{path} imports the plug-in {module}: name it in a registry instead"
                )
        elif first == "janus_jax" and rest and rest[0] not in {*FLOORS, "__version__"}:
            problems.append(f"{path} imports {module}, whose floor is not listed")
    return problems


def library_files() -> list[str]:
    """All but what only starts a command of `cli`."""
    paths = [path for path in LIBRARY.rglob("*.py") if path.name != "__main__.py"]
    return sorted(str(path.relative_to(LIBRARY)) for path in paths)


@pytest.mark.parametrize("path", [p for p in library_files() if p != "__init__.py"])
def test_a_room_imports_only_from_floors_below(path):
    assert Path(path).with_suffix("").parts[0] in FLOORS, "a new room: say on which floor it is"
    assert violations((LIBRARY / path).read_text(encoding="utf-8"), path) == []


def test_the_package_itself_imports_nothing_when_imported():
    tree = ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))
    assert [module for module, top_level in imports(tree, "janus_jax") if top_level] == []


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports when it is imported itself."""
    trees = {
        module_of(path, root): (ast.parse(path.read_text(encoding="utf-8")), path)
        for path in (root / package).rglob("*.py")
    }
    graph = {}
    for module, (tree, path) in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        inside = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = {name for name, top_level in imports(tree, inside) if top_level}
        # Of `from package import name`, either the module of this name or the package's own file.
        near = {name if name in trees else name.rpartition(".")[0] for name in found}
        graph[module] = {name for name in near if name in trees and name != module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not."""
    reach = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def test_no_modules_import_each_other_in_a_circle():
    assert circles(import_graph(ROOT, "janus_jax")) == []


def test_a_circle_is_found(tmp_path):
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from p.b import x")
    (package / "b.py").write_text("from . import c")
    (package / "c.py").write_text("import p.a")
    (package / "d.py").write_text(
        "from p import a\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import p.e\n"
    )
    (package / "e.py").write_text("import p.d\ndef f():\n  import p.e")
    assert circles(import_graph(tmp_path, "p")) == [["p.a", "p.b", "p.c"]]


def test_no_file_is_too_long_to_be_read():
    lines = {
        p: len((LIBRARY / p).read_text(encoding="utf-8").splitlines()) for p in library_files()
    }
    assert {path: count for path, count in lines.items() if count > 450} == {}


@pytest.mark.parametrize(
    ("path", "source", "allowed"),
    [
        ("models/a.py", "from janus_jax.config import JanusConfig", True),
        ("models/a.py", "from janus_jax.models.b import B", True),
        ("models/a.py", "from .b import B", True),
        ("training/a.py", "from janus_jax import models", True),
        ("run/a.py", "import janus_jax.training", True),
        ("emoji/a.py", "from janus_jax.evaluation import x", True),
        ("emoji/a.py", "from janus_jax.data import Text", True),
        ("emoji/a.py", "from janus_jax.run import x", False),
        ("run/a.py", "from janus_jax.emoji import World", False),
        ("cli/a.py", "def f():\n  import janus_jax.emoji.world", False),
        ("configs/a.py", "from janus_jax.emoji.scene import SCENE_KINDS", False),
        ("data/a.py", "from janus_jax.emoji.world import World", False),
        ("configs/a.py", "from janus_jax.run import x", False),
        ("interop/a.py", "def f():\n  import torch", True),
        ("config.py", "from janus_jax.models import Janus", False),
        ("models/a.py", "def f():\n  from janus_jax.data import x", False),
        ("models/a.py", "from ..data import x", False),
        ("processing/a.py", "from janus_jax.data import x", False),
        ("inference/a.py", "import janus_jax.training.step", False),
        ("inference/a.py", "from janus_jax import run", False),
        ("run/a.py", "import train", False),
        ("run/a.py", "from janus_jax import Janus", True),
        ("training/a.py", "from janus_jax import Janus", False),
        ("interop/a.py", "import torch", False),
        ("interop/a.py", "try:\n  import torch\nexcept ImportError:\n  pass", False),
        ("models/a.py", "def f():\n  import torch", False),
        ("harness/a.py", "from lmms_eval.api.model import lmms", True),
        ("harness/a.py", "from janus_jax.cli import x", False),
        ("evaluation/a.py", "def f():\n  import lmms_eval", False),
        ("serving/a.py", "import gradio", True),
        ("cli/a.py", "def f():\n  import gradio", False),
        ("data/a.py", "def f():\n  import tensorflow as tf", False),
        ("data/a.py", "def f():\n  import tensorflow_datasets as tfds", True),
    ],
)
def test_the_checker_sees_what_it_should(path, source, allowed):
    assert (violations(source, path) == []) is allowed


def test_the_engine_of_the_server_and_what_speaks_http_know_the_jobs_alone():
    serving = LIBRARY / "serving"
    rooms = {"engine": ("http", "page"), "http": ("engine",), "page": ("engine",)}
    for room, strangers in rooms.items():
        for path in (serving / room).glob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            for module, _ in imports(tree, f"janus_jax.serving.{room}"):
                parts = module.split(".")
                assert parts[:2] != ["janus_jax", "serving"] or parts[2] not in strangers, path
