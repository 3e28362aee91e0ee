"""One process of `benchmarks/sampling.py`: loads a model once and runs what it is told, one JSON line each.

  python benchmarks/sampling_worker.py ours|torch|probe 0,1      (cores, or "-" for all)

A request is {"do": name, ...}, the answer {"ok": ...} or {"error": kind, "message": ...}. Arrays travel as .npy
files. A worker that is not asked anything sleeps in a read of its standard input.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOS, BOI, PAD, EOI = 1, 2, 3, 4  # random weights give no token a meaning: any ids will do
PACKAGES = ("jax", "jaxlib", "flax", "qwix", "torch", "transformers", "numpy")
GIB = 2**30


def main() -> None:
    kind, cores = sys.argv[1:3]
    if cores != "-":  # before anything makes a pool of threads
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    worker = _make(kind)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(worker, "do_" + request.pop("do"))(**request)}
        except Exception as error:  # also of XLA and torch: the parent reports it and goes on
            answer = {"error": _kind(error), "message": f"{type(error).__name__}: {error}"[:2000]}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def _make(kind: str) -> Any:
    """What does the work; only its own framework is imported."""
    if kind == "ours":
        from benchmarks.sampling_ours import Ours

        return Ours()
    if kind == "torch":
        from benchmarks.sampling_torch import Peers

        return Peers()
    return Probe()


def _kind(error: Exception) -> str:
    """ "unavailable" for what cannot be done here, "failed" for what should have worked."""
    missing = type(error).__name__ in ("PeerUnavailable", "UserError", "ModuleNotFoundError")
    return "unavailable" if missing else "failed"


def prompt(length: int, vocab: int) -> tuple[list[int], list[int]]:
    """A conditional prompt and its unconditional one, the same in all processes."""
    import numpy as np

    inner = np.random.default_rng(0).integers(EOI + 1, vocab - 1, length - 2).tolist()
    return [BOS, *inner, BOI], [BOS, *[PAD] * (length - 2), BOI]


def question(length: int, vocab: int, slots: int) -> list[int]:
    """Words, one picture in `slots` image tokens (the last id of the vocabulary), words."""
    ids = prompt(length, vocab)[0][1:-1]
    half = len(ids) // 2
    return [BOS, *ids[:half], BOI, *[vocab - 1] * slots, EOI, *ids[half:]]


class Meter:
    """Seconds of a region, its peak memory, and how much of our cores others had meanwhile."""

    def __enter__(self) -> Meter:
        with contextlib.suppress(OSError):  # 5 resets the peak of the resident memory
            Path("/proc/self/clear_refs").write_text("5")
        self._stat, self._own = _busy(), sum(os.times()[:2])
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._began
        cores = len(os.sched_getaffinity(0))
        others = _busy() - self._stat - (sum(os.times()[:2]) - self._own)
        self.others = max(0.0, others) / (self.seconds * cores)
        lines = Path("/proc/self/status").read_text().splitlines()
        self.resident = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))


def _busy() -> float:
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


def picture(size: int) -> Any:
    """uint8 [size, size, 3], the same in all processes."""
    import numpy as np

    return np.random.default_rng(1).integers(0, 256, (size, size, 3)).astype(np.uint8)


if __name__ == "__main__":
    main()
