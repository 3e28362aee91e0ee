"""What options of XLA do to a decode step: none is a default of ours, so that a gain found here can become one."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

from benchmarks.on_device.drawing import STEPS, loaded
from benchmarks.on_device.setting import Results, Setting
from benchmarks.sampling_ours import Ours

_GRAPHS = "xla_gpu_enable_command_buffer"
_ALL = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "products by cuBLAS alone": {"xla_gpu_enable_triton_gemm": False},
    "loops in graphs, too": {_GRAPHS: _ALL},
    "no graphs": {_GRAPHS: ""},
    "exhaustive tiling search": {"xla_gpu_exhaustive_tiling_search": True},
}


def options(setting: Setting) -> Results:
    """ms/step of a block under each option."""
    if setting.device == "cpu":
        yield {"left out": "these are options of XLA for GPUs"}
        return
    ours = loaded(setting, setting.config())
    rows: dict[str, Any] = {}
    for name, values in OPTIONS.items():
        rows[name] = {}
        for n in dict.fromkeys((setting.images[0], setting.images[-1])):
            try:
                rows[name] |= _block(ours, n, values, setting.repeats)
            except Exception as error:  # an option that this XLA lacks, or that breaks it
                rows[name][f"{n}: ms_per_step"] = str(error).splitlines()[0][:80]
            yield {"decode step": rows}


def _block(ours: Ours, images: int, values: dict[str, Any], repeats: int) -> dict[str, float]:
    """A block in the middle of a picture; the same as that of section "drawing"."""
    import jax
    import jax.numpy as jnp

    from janus_jax.sampling import kv_cache
    from janus_jax.sampling.image_engine import State

    engine = ours.engine
    advance = jax.jit(
        engine._advance,
        static_argnames=("steps", "mode"),
        donate_argnames="state",
        compiler_options=values or None,
    )
    prompts, keys = ours._arrange(images)
    T, shape = prompts.ids.shape[1], prompts.rows.shape
    window = T + ours.config.vq.num_codes // 2
    cache = kv_cache.flat(kv_cache.empty(ours.config.decoder, shape, window, ours.cache_dtype))
    state = State(cache, jnp.zeros(shape, jnp.int32), jnp.zeros(shape[1], jnp.int32))
    run = partial(advance, steps=STEPS, mode=ours.mode)
    times = []
    for _ in range(2 + repeats):  # the second may still capture graphs
        began = time.perf_counter()
        state, codes = run(ours.weights, state, window - T - STEPS + 1, keys, ours.knobs, T)
        jax.block_until_ready(codes)
        times.append(time.perf_counter() - began)
    return {
        f"{images}: ms_per_step": statistics.median(times[2:]) / STEPS * 1000,
        f"{images}: compile_s": times[0],
    }
