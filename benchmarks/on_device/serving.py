"""The server's blocks, whose rows are at positions of their own, beside those of a batch that runs together."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from benchmarks.inference.native import NativeEngines
from benchmarks.on_device.drawing import STEPS, loaded
from benchmarks.on_device.drawing import block as run_together
from benchmarks.on_device.setting import PROMPT_LENGTH, Results, Setting

CONTEXT = 1024  # slots of a conversation


def serving(setting: Setting) -> Results:
    """ms/step of pictures and answers in a pool; whether the kernel draws what XLA draws."""
    native = loaded(setting, setting.config())
    rows: dict[str, Any] = {}
    for n in dict.fromkeys((setting.images[0], setting.images[-1])):
        row: dict[str, Any] = {}
        rows[f"{n} pictures"] = row
        row["together_ms_per_step"], _ = run_together(native, n, setting.repeats)
        row |= pool(setting, native, n, codes=True)
        yield {"drawing": rows}
    answers: dict[str, Any] = {}
    for n in dict.fromkeys((1, setting.images[-1])):
        answers[f"{n} answers"] = pool(setting, native, n, codes=False)
        yield {"answering": answers}


def pool(setting: Setting, native: NativeEngines, rows: int, codes: bool) -> dict[str, Any]:
    """A block of `rows` rows that are spread over the middle of their way, by the default program and by XLA."""
    import jax

    from janus_jax.inference.slots import SlotEngine

    config, total = native.config, native.config.vq.num_codes
    slots = PROMPT_LENGTH + total if codes else min(CONTEXT, config.decoder.max_position)
    steps = min(STEPS, total // 4)
    found: dict[str, Any] = {}
    tokens = {}
    for name, kernel in (("", None), ("xla_", False)):
        args = (config.decoder, 1 + codes, codes, slots, steps, native.cache_dtype)
        engine = SlotEngine(*args, kernel=kernel)
        if name and not tokens["kernel"]:
            break  # it was XLA's program already
        noise = lambda x: jax.random.normal(jax.random.key(1), x.shape, x.dtype)
        cache = jax.tree.map(noise, engine.empty(rows=rows))
        now, shape = state(rows, slots, steps, total if codes else slots), (rows, engine.slots)
        times = []
        for turn in range(2 + setting.repeats):
            began = time.perf_counter()
            block = (native.weights, cache, now, np.int32(steps))
            cache, new = engine.block(*block, rows=shape[0], length=shape[1])
            new = np.asarray(new)
            times.append(time.perf_counter() - began)
            if turn == 0:
                tokens[name] = new[:, 0]  # later ones follow from the first
        tokens["kernel"] = engine.reads_filled
        found[f"{name}ms_per_step"] = statistics.median(times[2:]) / steps * 1000
        found[f"{name}compile_s"] = times[0]
    if "xla_" in tokens:
        found["first_tokens_equal"] = float((tokens[""] == tokens["xla_"]).mean())
    return found


def state(rows: int, slots: int, steps: int, most: int) -> Any:
    """Rows that are at a quarter, ..., three quarters of `most`."""
    from janus_jax.inference.logits import SamplingParams
    from janus_jax.inference.slots import PLAIN, Rows, stacked

    drawn = np.linspace(most // 4, 3 * most // 4 - steps, rows).astype(np.int32)
    filled = np.minimum(PROMPT_LENGTH + drawn, slots - steps).astype(np.int32)
    numbers = np.arange(rows, dtype=np.uint32)
    sampling = stacked([SamplingParams(5.0, 1.0, 1, 1.0)] * rows)
    return Rows(filled, drawn % 7, drawn, numbers, numbers, numbers, sampling, np.int32(PLAIN))
