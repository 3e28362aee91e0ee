"""One process of `benchmarks/sampling.py` or `training.py`: loads a model once and runs what it is told.

  python -m benchmarks.inference.worker native|torch|probe|... 0,1      (of `KINDS`; cores, or "-" for all)

Requests come as JSON lines. One is {"do": name, ...}, the answer {"ok": ...} or {"error": kind, "message": ...}.
Arrays travel as .npy files. A worker that is not asked anything sleeps in a read of its standard input.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

# What works in a process of each kind; a name that begins with "native" computes with JAX.
KINDS = {
    "native": "benchmarks.inference.native:NativeEngines",
    "torch": "benchmarks.inference.pytorch:Peers",
    "probe": "benchmarks.inference.probe:Probe",
    "native_step": "benchmarks.train.native:NativeStep",
    "torch_step": "benchmarks.train.pytorch:TorchSteps",
}


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
    module, name = KINDS[kind].split(":")
    return getattr(importlib.import_module(module), name)()


def _kind(error: Exception) -> str:
    """ "unavailable" for what cannot be done here, "failed" for what should have worked."""
    missing = type(error).__name__ in ("PeerUnavailable", "UserError", "ModuleNotFoundError")
    return "unavailable" if missing else "failed"


if __name__ == "__main__":
    main()
