"""What options of XLA do to a decode step: none is a default of ours, so that a gain found here can become one."""

from __future__ import annotations

from typing import Any

from benchmarks.on_device.drawing import block, loaded
from benchmarks.on_device.setting import Results, Setting

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
    native = loaded(setting, setting.config())
    rows: dict[str, Any] = {}
    for name, values in OPTIONS.items():
        rows[name] = {}
        for n in dict.fromkeys((setting.images[0], setting.images[-1])):
            try:
                ms, compiled = block(native, n, setting.repeats, values)
                rows[name] |= {f"{n}: ms_per_step": ms, f"{n}: compile_s": compiled}
            except Exception as error:  # an option that this XLA lacks, or that breaks it
                rows[name][f"{n}: ms_per_step"] = str(error).splitlines()[0][:80]
            yield {"decode step": rows}
