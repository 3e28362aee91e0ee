"""The house has floors: a room imports only from floors below its own, never from a neighbour."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "janus_jax"

# On the ground floor `console` carries `errors`, which carries `config`, which carries `models`.
FLOORS = {
    "console": -0.1,
    "errors": 0.0,
    "untrusted": 0.05,
    "places": 0.1,
    "registry": 0.1,
    "signals": 0.1,
    "config": 0.1,
    "models": 0.2,
    "parallel": 1,
    "processing": 1,
    "checkpoints": 1,
    "interop": 2,
    "data": 2,
    "training": 3,
    "inference": 3,
    "emoji": 3,
    "sampling": 4,
    "run": 4,
    "configs": 4,
    "cli": 5,
}
ENTRY_POINTS = {"train", "sample", "convert_torch_weights", "configs", "tests"}
NEVER = {"tensorflow", "tensorflow_datasets"}  # tfds is imported where it is used
HEAVY = {"torch", "transformers", "tensorboardX", "huggingface_hub", "qwix", "libtpu", *NEVER}


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


def violations(source: str, path: str) -> list[str]:
    """What a library file at `path` (relative to janus_jax) imports against the rules."""
    parts = Path(path).with_suffix("").parts
    room = parts[0]
    package = ".".join(["janus_jax", *parts[:-1]])
    problems = []
    for module, top_level in imports(ast.parse(source), package):
        first, *rest = module.split(".")
        if first in ENTRY_POINTS:
            problems.append(f"{path} imports the entry point {module}")
        if top_level and first in HEAVY:
            problems.append(f"{path} imports {module} at module level")
        if first == "tensorflow" or (first == "torch" and room != "interop"):
            problems.append(f"{path} imports {module}")
        if first == "janus_jax" and rest and rest[0] in FLOORS and rest[0] != room:
            if FLOORS[rest[0]] >= (int(FLOORS[room]) or FLOORS[room]):
                problems.append(f"{path} imports {module} of the same or a higher floor")
        elif first == "janus_jax" and rest and rest[0] not in {*FLOORS, "__version__"}:
            problems.append(f"{path} imports {module}, whose floor is not listed")
    return problems


def library_files() -> list[str]:
    return sorted(str(path.relative_to(LIBRARY)) for path in LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("path", [p for p in library_files() if p != "__init__.py"])
def test_a_room_imports_only_from_floors_below(path):
    assert Path(path).with_suffix("").parts[0] in FLOORS, "a new room: say on which floor it is"
    assert violations((LIBRARY / path).read_text(encoding="utf-8"), path) == []


def test_the_package_itself_imports_nothing_when_imported():
    tree = ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))
    assert [module for module, top_level in imports(tree, "janus_jax") if top_level] == []


@pytest.mark.parametrize(
    ("path", "source", "allowed"),
    [
        ("models/a.py", "from janus_jax.config import JanusConfig", True),
        ("models/a.py", "from janus_jax.models.b import B", True),
        ("models/a.py", "from .b import B", True),
        ("training/a.py", "from janus_jax import models", True),
        ("run/a.py", "import janus_jax.training", True),
        ("interop/a.py", "def f():\n  import torch", True),
        ("config.py", "from janus_jax.models import Janus", False),
        ("models/a.py", "def f():\n  from janus_jax.data import x", False),
        ("models/a.py", "from ..data import x", False),
        ("processing/a.py", "from janus_jax.data import x", False),
        ("inference/a.py", "import janus_jax.training.step", False),
        ("inference/a.py", "from janus_jax import run", False),
        ("run/a.py", "import train", False),
        ("interop/a.py", "import torch", False),
        ("interop/a.py", "try:\n  import torch\nexcept ImportError:\n  pass", False),
        ("models/a.py", "def f():\n  import torch", False),
        ("data/a.py", "def f():\n  import tensorflow as tf", False),
        ("data/a.py", "def f():\n  import tensorflow_datasets as tfds", True),
    ],
)
def test_the_checker_sees_what_it_should(path, source, allowed):
    assert (violations(source, path) == []) is allowed
