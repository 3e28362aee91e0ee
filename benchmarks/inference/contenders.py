"""Who takes part in `benchmarks/sampling.py`, and whether all of them fit in memory."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.inference.meter import GIB
from benchmarks.inference.process import Worker, WorkerError
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.interop.conversion.convert import expected_shapes

NATIVE, NATIVE_INT8 = "janus_jax", "janus_jax_int8"
PEERS = ("official", "transformers", "transformers_compiled", "loop", "loop_compiled")
CONTENDERS = (NATIVE, *PEERS)
_RUN_GIB = 2  # caches and activations of few pictures


def is_native(name: str) -> bool:
    """Whether a contender is this project, in whatever precision."""
    return name in (NATIVE, NATIVE_INT8)


class Contender:
    """One way to draw, in a worker.

    Attributes:
      name: what it is called.
      problem: why it takes no part (any more), or "".
    """

    def __init__(self, name: str, worker: Worker):
        self.name, self.problem = name, ""
        self.worker = worker
        self._own = {} if is_native(name) else {"contender": name}

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


@contextlib.contextmanager
def contenders(
    args: argparse.Namespace, directory: Path, config: JanusConfig, scratch: Path
) -> Iterator[tuple[list[Contender], dict[str, Any]]]:
    """(those that were asked for, what each reported when it was loaded); ends all processes at last."""
    names = [*args.contenders, *([NATIVE_INT8] if args.int8 else [])]
    check_memory(args, config, names)
    found, workers, loaded = [], [], {}
    shared = None
    try:
        for name in tqdm(names, "load", leave=False):
            native = is_native(name)
            if native or shared is None:
                worker = Worker("native" if native else "torch", args, scratch, name)
                workers.append(worker)
                request = {"directory": str(directory), "dtype": args.dtype, "device": args.device}
                own = (
                    {"int8": args.int8 if name == NATIVE_INT8 else []}
                    if native
                    else {"threads": len(args.cores) or os.cpu_count()}
                )
                contender = Contender(name, worker)
                try:
                    loaded[name] = worker.ask(
                        "load", **request, **own, prompt_length=args.prompt_length
                    )
                except WorkerError as error:
                    contender.problem = f"not available: {' '.join(str(error).split())[:400]}"
                if not native and args.share_torch and not contender.problem:
                    shared = worker
            else:
                contender = Contender(name, shared)
            found.append(contender)
        yield found, loaded
    finally:
        for worker in workers:
            worker.close()


def check_memory(args: argparse.Namespace, config: JanusConfig, names: Sequence[str]) -> None:
    """Refuses what would not fit a CPU's memory: the machine would kill some process, maybe another's."""
    if args.device != "cpu":
        return
    size = sum(int(np.prod(shape)) for shape in expected_shapes(config).values())
    gib = size * {"float32": 4, "bfloat16": 2}[args.dtype] / GIB
    peak = held = 0.0
    for i, name in enumerate(names):
        if args.share_torch and name in PEERS and any(other in PEERS for other in names[:i]):
            continue
        # janus_jax reads all of the checkpoint, in bfloat16, before it packs; the peers tensor by tensor.
        peak = max(peak, held + gib + (0 if name in PEERS else 2 * size / GIB))
        held += gib
    lines = dict(x.split(":") for x in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) / 2**20
    if max(peak, held + _RUN_GIB) > free:
        hint = "" if args.share_torch else ", or add --share_torch"
        raise UserError(
            f"the weights of all contenders take {held:.1f} GiB ({peak:.1f} while they are read) of "
            f"{free:.1f} GiB that are free: name fewer --contenders{hint}"
        )
