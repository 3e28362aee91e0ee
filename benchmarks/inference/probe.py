"""The memory bandwidth of the cores, measured in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.inference.meter import GIB


class Probe:
    """Measures the memory of the cores with NumPy, which favours neither side."""

    def do_bandwidth(self) -> dict[str, Any]:
        """Bytes/s of reading 1 GiB, one thread a core: the faster of two ways, best of seven."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        cores = len(os.sched_getaffinity(0))
        parts = [np.full(GIB // 4 // cores, i + 1, np.float32) for i in range(cores)]
        ways: dict[str, Callable] = {
            "dot": lambda x: np.dot(x, x),
            "or": lambda x: np.bitwise_or.reduce(x.view(np.int64)),
        }
        best = {}
        with ThreadPoolExecutor(cores) as pool:
            for name, way in ways.items():
                times = []
                for _ in range(7):
                    began = time.perf_counter()
                    list(pool.map(way, parts))
                    times.append(time.perf_counter() - began)
                best[name] = sum(p.nbytes for p in parts) / min(times)
        way = max(best, key=best.get)
        return {"bytes_per_s": best[way], "how": f"numpy {way!r} of 1 GiB on {cores} core(s)"}
