"""The processes of `benchmarks/sampling.py` and `training.py`: one a contender, asked in turn.

A pipe of JSON lines rather than a pool of processes: each contender needs variables of its own before its
interpreter starts (threads of OpenMP, which devices are visible), imports only its own framework, writes what its
libraries print to a log of its own, and may die, in which case the others go on. A spawned pool shares one
environment and imports the parent's main module, and with it jax, in every process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.paths import importable

ENVIRONMENT = dict(os.environ)  # as it was when the command started


class WorkerError(Exception):
    """What a worker answered instead of a result; `kind` is "unavailable" or "failed"."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Worker:
    """A process of `benchmarks.inference.worker` on the other end of two pipes."""

    def __init__(self, kind: str, args: argparse.Namespace, scratch: Path, name: str):
        env = importable(ENVIRONMENT)
        env.pop(
            "JAX_COMPILATION_CACHE_DIR", None
        )  # compile times are of a first use, on both sides
        env["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "inductor")
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if args.cores:
            env["OMP_NUM_THREADS"] = str(len(args.cores))
        if kind == "probe":  # it has threads of its own
            env["OPENBLAS_NUM_THREADS"] = "1"
        if not kind.startswith("native") or args.device == "cpu":
            env["JAX_PLATFORMS"] = "cpu"
        elif env.get("JAX_PLATFORMS") == "cpu":
            del env["JAX_PLATFORMS"]
        if args.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        cores = ",".join(map(str, args.cores)) or "-"
        self.name, self._log = name, scratch / f"{name}.log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.inference.worker", kind, cores],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env=env,
        )

    def ask(self, do: str, **request: Any) -> Any:
        """Waits for the answer; raises `WorkerError`."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            code = self._process.wait()
            raise WorkerError("failed", f"the process ended with {code} ({''.join(last)[:300]})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer["message"])
        return answer["ok"]

    def close(self) -> None:
        """Ends it: it holds nothing worth keeping."""
        self._process.kill()
        self._process.wait()
