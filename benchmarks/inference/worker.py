"""One process of `benchmarks/sampling.py`: loads a model once and runs what it is told, one JSON line each.

  python -m benchmarks.inference.worker native|torch|probe 0,1      (cores, or "-" for all)

A request is {"do": name, ...}, the answer {"ok": ...} or {"error": kind, "message": ...}. Arrays travel as .npy
files. A worker that is not asked anything sleeps in a read of its standard input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    kind, cores = sys.argv[1:3]
    if cores != "-":  # before anything makes a pool of threads
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
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
    if kind == "native":
        from benchmarks.inference.native import NativeEngines

        return NativeEngines()
    if kind == "torch":
        from benchmarks.inference.pytorch import Peers

        return Peers()
    from benchmarks.inference.probe import Probe

    return Probe()


def _kind(error: Exception) -> str:
    """ "unavailable" for what cannot be done here, "failed" for what should have worked."""
    missing = type(error).__name__ in ("PeerUnavailable", "UserError", "ModuleNotFoundError")
    return "unavailable" if missing else "failed"


if __name__ == "__main__":
    main()
