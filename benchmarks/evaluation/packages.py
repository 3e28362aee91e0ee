"""Functions of packages that are not installed, taken out of their wheels or of a checkout and run alone."""

from __future__ import annotations

import ast
import copy
import logging
import os
import random
import re
import string
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def functions_of(
    read: Callable[[str], str],
    wanted: Mapping[str, Sequence[str]],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Functions, classes and constants of some source files, in one namespace with the few modules they use.

    Args:
      read: name of a file -> its source.
      wanted: file -> names in it; those that a file lacks are left out.
      given: what else they need, by name.
    """
    quiet = logging.getLogger("packages")
    quiet.disabled = True
    names: dict[str, Any] = {
        **{"cp": copy, "os": os, "re": re, "string": string, "np": np, "random": random},
        **{"logger": quiet, "eval_logger": quiet},
        **(given or {}),
    }
    for path, listed in wanted.items():
        nodes = []
        for node in ast.parse(read(path)).body:
            name = getattr(node, "name", None)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
            if name in listed:
                nodes.append(node)
        exec(compile(ast.Module(nodes, []), path, "exec"), names)
    return names


def of_wheel(directory: Path, package: str) -> tuple[str, Callable[[str], str]]:
    """(name of the wheel, what reads a file in it)."""
    found = sorted(directory.glob(f"{package}-*.whl"))
    if not found:
        sys.exit(f"error: {directory} has no wheel of {package}: pip download --no-deps {package}")
    archive = zipfile.ZipFile(found[-1])
    return found[-1].name, lambda path: archive.read(path).decode("utf-8")
