"""Functions out of a script that cannot be imported here, as it needs a detector or a judge on a GPU."""

from __future__ import annotations

import ast
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax import untrusted
from janus_jax.errors import UserError


def functions_of(path: Path, names: list[str], given: Mapping[str, Any]) -> types.SimpleNamespace:
    """The functions and constants `names` of a script, run with `given` in place of what it imports.

    Raises:
      UserError: it cannot be read, or lacks one of them.
    """
    tree = ast.parse(untrusted.read_text(path), str(path))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} has no {missing[0]}: is it the official script?")
    space = dict(given)
    module = ast.Module([found[name] for name in names], type_ignores=[])
    exec(compile(module, str(path), "exec"), space)  # the user named the script
    return types.SimpleNamespace(space=space, **{name: space[name] for name in names})
