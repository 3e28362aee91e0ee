"""PyTorch on the same device: the official loop and a compiled hand-written one, with random weights.

For times only, so the weights need not be ours: `benchmarks/sampling.py` compares logits of the same weights
first, and takes several times as long.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks.inference.inputs import prompt
from benchmarks.on_device.setting import GIB, PROMPT_LENGTH, Results, Setting

SHORT = 16  # codes of a warm-up of what does not compile


def peers(setting: Setting) -> Results:
    """Whole pictures, from prompt ids to pixels on the host; `ratio` is over ours of section "drawing"."""
    import torch

    from benchmarks.peers.compiled_loop import CompiledLoop
    from benchmarks.peers.loops import OfficialLoop
    from benchmarks.peers.model import build_model

    on_cpu = setting.device == "cpu"
    config = setting.config()
    dtype = torch.float32 if on_cpu else torch.bfloat16
    model = build_model(config, dtype, "cpu" if on_cpu else "cuda")
    ids = prompt(PROMPT_LENGTH, config.decoder.vocab_size)
    native = setting.earlier("drawing").get("plain", {})
    rows: dict[str, Any] = {}
    makers = {"official loop": (OfficialLoop, False)}
    if on_cpu:
        makers["hand-written loop"] = (lambda m: CompiledLoop(m, compile=False), False)
    else:
        makers["hand-written loop, compiled"] = (CompiledLoop, True)
    for n in setting.images:
        for name, (make, compiles) in makers.items():
            peer = make(model)
            began = time.perf_counter()
            peer.run(*ids, n, steps=None if compiles else min(SHORT, config.vq.num_codes))
            warm = time.perf_counter() - began
            runs = []
            for seed in range(setting.repeats if compiles else 1):
                began = time.perf_counter()
                result = peer.run(*ids, n, seed=seed)
                runs.append((time.perf_counter() - began, result.seconds))
            row = {
                "seconds": statistics.median(total for total, _ in runs),
                "ms_per_step": statistics.median(s["decode"] for _, s in runs)
                / (config.vq.num_codes - 1)
                * 1000,
                "vq_s": statistics.median(s["vq"] for _, s in runs),
                "warm_up_s": warm,
            }
            if not on_cpu:
                row["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
            if own := native.get(f"{n} pictures", {}).get("seconds"):
                row["ratio"] = row["seconds"] / own
            rows[f"{name}, {n} pictures"] = row
            yield {"time": rows, "versions": {"torch": torch.__version__}}
