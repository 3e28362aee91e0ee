"""The processes that `sampling.py` compares: one a contender, asked in turn."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = dict(os.environ)  # as it was before anybody changed it


class WorkerError(Exception):
    """What a worker answered instead of a result; `kind` is "unavailable" or "failed"."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Worker:
    """A process of `sampling_worker.py` on the other end of two pipes."""

    def __init__(self, kind: str, args: argparse.Namespace, scratch: Path, name: str):
        env = dict(ENVIRONMENT)
        env.pop(
            "JAX_COMPILATION_CACHE_DIR", None
        )  # compile times are of a first use, on both sides
        env["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "inductor")
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if args.cores:
            env["OMP_NUM_THREADS"] = str(len(args.cores))
        if kind == "probe":  # it has threads of its own
            env["OPENBLAS_NUM_THREADS"] = "1"
        if kind != "ours" or args.device == "cpu":
            env["JAX_PLATFORMS"] = "cpu"
        elif env.get("JAX_PLATFORMS") == "cpu":
            del env["JAX_PLATFORMS"]
        if args.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        cores = ",".join(map(str, args.cores)) or "-"
        self.name, self._log = name, scratch / f"{name}.log"
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("sampling_worker.py"), kind, cores],
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
            said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            code = self._process.wait()
            raise WorkerError("failed", f"the process ended with {code} ({''.join(said)[:300]})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer["message"])
        return answer["ok"]

    def close(self) -> None:
        """Ends it: it holds nothing worth keeping."""
        self._process.kill()
        self._process.wait()


class Contender:
    """One way to draw, in a worker.

    Attributes:
      name: what it is called.
      problem: why it takes no part (any more), or "".
    """

    def __init__(self, name: str, worker: Worker):
        self.name, self.problem = name, ""
        self.worker = worker
        self._own = {} if name.startswith("ours") else {"contender": name}

    def ask(self, do: str, **request: Any) -> Any:
        """The answer, or None after a failure, which is kept in `problem`."""
        if self.problem:
            return None
        try:
            return self.worker.ask(do, **self._own, **request)
        except WorkerError as error:
            what = "not available" if error.kind == "unavailable" else f"failed in {do}"
            self.problem = f"{what}: {' '.join(str(error).split())[:400]}"
            return None

    def release(self) -> None:
        """Lets go of what the last number of pictures needed."""
        if not self.problem:
            with contextlib.suppress(WorkerError):
                self.worker.ask("release")
