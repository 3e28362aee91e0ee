"""The machine that a server is measured on, and who used its cores meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

from benchmarks.inference.meter import busy, versions
from benchmarks.serving.server import Server

_PACKAGES = ("starlette", "uvicorn", "httpx", "pillow")


def facts() -> dict[str, Any]:
    """Cores, memory, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), None)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "versions": versions() | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


class Shares:
    """Of a region: who used the cores, as shares of all of them."""

    def __init__(self, *servers: Server | None):
        self._servers = [server for server in servers if server is not None]

    def __enter__(self) -> Shares:
        self._began, self._before = time.perf_counter(), self._now()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._began
        whole = self.seconds * len(os.sched_getaffinity(0))
        all_, us, servers = (
            (a - b) / whole for a, b in zip(self._now(), self._before, strict=True)
        )
        others = max(0.0, all_ - us - servers)
        self.found = {"server": servers, "clients": us, "others": others, "seconds": self.seconds}

    def _now(self) -> tuple[float, float, float]:
        """Seconds of cores: of everybody, of this process and its ended children, of the servers."""
        servers = sum(server.cpu() or 0.0 for server in self._servers)
        return busy(), sum(os.times()[:4]), servers
