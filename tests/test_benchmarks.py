"""The layout of benchmarks/: no import circles, and every command that is documented exists."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / ".ci" / "run",
    *FILES,
]


def module(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(tree, known):
    """Modules of benchmarks that code imports, wherever in it: a late import hides a circle only."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known


def order(sources):
    """Module names so that each comes after those that it imports; raises `CycleError`."""
    graph = {name: imports(ast.parse(text), set(sources)) for name, text in sources.items()}
    return list(TopologicalSorter(graph).static_order())


def test_no_import_circle():
    sources = {module(path): path.read_text() for path in FILES}
    assert set(order(sources)) == set(sources)


def test_circles_are_found():
    late = "def f():\n    from benchmarks import a"
    with pytest.raises(CycleError):
        order({"benchmarks.a": "import benchmarks.b", "benchmarks.b": late})


def test_documented_commands_exist():
    wanted = set()
    for path in DOCUMENTS:
        text = path.read_text()
        wanted |= {ROOT / name for name in re.findall(r"\bpython (benchmarks/[\w/]+\.py)", text)}
        for name in re.findall(r"\bpython -m (benchmarks\.[\w.]+\w)", text):
            wanted.add(ROOT / (name.replace(".", "/") + ".py"))
    assert len(wanted) > 8
    assert [str(path) for path in wanted if not path.is_file()] == []


@pytest.mark.parametrize("name", ["sampling", "accelerator", "training"])
def test_entry_scripts_start_anywhere(name, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--model" in done.stdout
