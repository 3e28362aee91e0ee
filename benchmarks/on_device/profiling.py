"""Which kernels a decode step spends its time in."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.on_device.drawing import STEPS, block, loaded
from benchmarks.on_device.setting import Results, Setting

TOP = 20


def profile(setting: Setting) -> Results:
    """The top kernels of a block of decode steps, one picture, then as many as the setting's largest.

    While the profiler watches, XLA launches kernels one by one instead of as graphs, so the sum of the kernels
    is a fact and the gaps between them are not: compare the sum with the block's time without the profiler.
    """
    native = loaded(setting, setting.config())
    steps = min(STEPS, native.config.vq.num_codes // 4)
    for n in dict.fromkeys((setting.images[0], setting.images[-1])):
        plain, _ = block(native, n, setting.repeats)
        kernels = _trace(lambda n=n: block(native, n, 1), rounds=3 * steps)
        total = sum(ms for ms, _ in kernels.values())
        top = sorted(kernels.items(), key=lambda item: -item[1][0])[:TOP]
        yield {
            f"{n} pictures": {
                "ms_per_step": plain,
                "kernels_ms_per_step": total,
                "kernels_per_step": sum(count for _, count in kernels.values()),
                "top": [
                    {"kernel": name, "ms_per_step": ms, "count_per_step": count}
                    for name, (ms, count) in top
                ],
            }
        }


def _trace(call: Any, rounds: int) -> dict[str, tuple[float, float]]:
    """{kernel: (ms, launches)} of one of `rounds` steps; names of numbered kernels are put together."""
    import jax

    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            call()
        (path,) = Path(scratch).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for event in _kernels(data):
            name = re.sub(r"[_.]\d+$", "", event.name)
            found[name][0] += event.duration_ns / 1e6 / rounds
            found[name][1] += 1 / rounds
    return {name: (ms, count) for name, (ms, count) in found.items()}


def _kernels(data: Any) -> Iterator[Any]:
    """Events of the streams of a GPU or the operations of a TPU; of the threads of a CPU, where it has neither."""
    lines = [(plane.name, line) for plane in data.planes for line in plane.lines]
    for wanted in (
        lambda plane, line: plane.startswith("/device:") and line.startswith("Stream"),
        lambda plane, line: plane.startswith("/device:") and line == "XLA Ops",
        lambda plane, line: plane.startswith("/host:") and line.startswith("tf_XLA"),
    ):
        chosen = [line for plane, line in lines if wanted(plane, line.name)]
        if chosen:
            return (event for line in chosen for event in line.events)
    raise ValueError(f"no kernels among {[(plane, line.name) for plane, line in lines]}")
