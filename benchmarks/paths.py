"""Where the repository is, for the processes that benchmarks start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def importable(environment: Mapping[str, str]) -> dict[str, str]:
    """The same, with the repository first on the path of Python: for `python -m benchmarks...`."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}
