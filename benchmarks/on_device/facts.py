"""The machine itself: versions, card, and the two rates that everything else is compared with."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

from benchmarks.inference.meter import versions
from benchmarks.on_device.setting import GIB, Results, Setting


def facts(setting: Setting) -> Results:
    """Bytes/s of a copy on the device, counted as read plus written, and operations/s of a product."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    found: dict[str, Any] = {
        "device": device.device_kind,
        "platform": device.platform,
        "versions": versions(),
        "card": _nvidia_smi(),
        "memory_gib": ((device.memory_stats() or {}).get("bytes_limit", 0)) / GIB or None,
    }
    yield found
    on_cpu = device.platform == "cpu"
    size = GIB // 16 if on_cpu else GIB  # elements
    # Random numbers: zeros draw less power, and ran 13 % faster on one card.
    x = jax.random.normal(jax.random.key(0, impl="rbg"), (size,), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = best(lambda: copy(x), 7)
    yield {"copy_bytes_per_s": 2 * x.nbytes / seconds, "copy_gib": x.nbytes / GIB}
    x.delete()
    n = 1024 if on_cpu else 8192
    a = jax.random.normal(jax.random.key(1, impl="rbg"), (n, n), jnp.bfloat16)
    multiply = jax.jit(lambda a: a @ a)
    seconds = best(lambda: multiply(a), 10)
    yield {"matmul_flops": 2 * n**3 / seconds, "matmul_size": n}


def best(call: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest of so many calls, after one that compiles."""
    import jax

    jax.block_until_ready(call())
    took = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(call())
        took.append(time.perf_counter() - began)
    return min(took)


def _nvidia_smi() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    query = "--query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
