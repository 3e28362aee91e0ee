"""Time, memory and versions of one process; imports no framework."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "qwix", "torch", "transformers", "numpy")
GIB = 2**30


class Meter:
    """Of a region: seconds, of the clock and of cores; peak memory; what of our cores others had meanwhile."""

    def __enter__(self) -> Meter:
        with contextlib.suppress(OSError):  # 5 resets the peak of the resident memory
            Path("/proc/self/clear_refs").write_text("5")
        self._stat, self._own = busy(), sum(os.times()[:2])
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._began
        cores = len(os.sched_getaffinity(0))
        self.cpu = sum(os.times()[:2]) - self._own
        others = busy() - self._stat - self.cpu
        self.others = max(0.0, others) / (self.seconds * cores)
        lines = Path("/proc/self/status").read_text().splitlines()
        self.resident = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))


def busy() -> float:
    """Seconds that our cores were not idle, since boot; time that the host took away counts."""
    cores = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = [map(int, row[1:9]) for row in rows if row and row[0] in cores]
    return sum(sum(t) - sum(t[3:5]) for t in map(list, ticks)) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """Of the packages that matter, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
