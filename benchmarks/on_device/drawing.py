"""Drawing and answering with random weights at a model's true size."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.inference.native import NativeEngines
from benchmarks.inference.report import must_read
from benchmarks.on_device.setting import GIB, PROMPT_LENGTH, Results, Setting, packed_weights
from janus_jax.config import JanusConfig, Policy

STEPS = 16  # of a block that is timed alone
ANSWER_TOKENS = 65


def drawing(setting: Setting) -> Results:
    """The model of the setting: plain, then in int8 where it should matter most."""
    config, images = setting.config(), setting.images
    yield from _draw(setting, config, images, ())
    if not importlib.util.find_spec("qwix"):
        yield {"int8": "left out: qwix is not installed"}
        return
    for int8 in (("weights",), ("weights", "cache")):
        yield from _draw(setting, config, images, int8, whole=False)


def large_drawing(setting: Setting) -> Results:
    """The large model, one picture, plain."""
    yield from _draw(setting, setting.config(large=True), setting.images[:1], ())


def _draw(
    setting: Setting,
    config: JanusConfig,
    numbers: Sequence[int],
    int8: Sequence[str],
    whole: bool = True,
) -> Results:
    """Blocks of steps and, of `whole` pictures, all of it."""
    name = f"int8 {' and '.join(int8)}" if int8 else "plain"
    began = time.perf_counter()
    native = loaded(setting, config, int8)
    rows: dict[str, Any] = {}
    yield {name: rows | {"weights_s": time.perf_counter() - began}}
    for n in numbers:
        row: dict[str, Any] = {}
        rows[f"{n} pictures"] = row
        # A block of steps first: its program is small, so there is a number before the large one is compiled.
        row["block_ms_per_step"], row["block_compile_s"] = block(native, n, setting.repeats)
        yield {name: rows}
        if whole:
            row |= measured(setting, native, n, int8)
            yield {name: rows}
        native.do_release()


def loaded(setting: Setting, config: JanusConfig, int8: Sequence[str] = ()) -> NativeEngines:
    """Engines with random weights."""
    native = NativeEngines()
    policy = Policy(setting.dtype, setting.dtype)
    weights = packed_weights(config, policy, "weights" in int8)
    native.use(config, setting.dtype, weights, int8, PROMPT_LENGTH)
    return native


def block(
    native: NativeEngines, images: int, repeats: int, options: dict[str, Any] | None = None
) -> tuple[float, float]:
    """(ms of a step, seconds of the first call) of `STEPS` steps in the middle of a picture.

    Args:
      native: engines and weights.
      images: pictures at once.
      repeats: timed blocks; the median counts.
      options: of XLA.
    """
    import jax
    import jax.numpy as jnp

    from janus_jax.inference import kv_cache
    from janus_jax.inference.image_engine import State

    engine, advance = native.engine, native.engine.advance
    if options:
        names = ("steps", "static")
        advance = jax.jit(
            engine._advance,
            static_argnames=names,
            donate_argnames="state",
            compiler_options=options,
        )
    prompts, keys = native._arrange(images)
    T, shape = prompts.ids.shape[1], prompts.rows.shape
    steps = min(STEPS, native.config.vq.num_codes // 4)
    length = T + native.config.vq.num_codes // 2
    cache = kv_cache.empty(native.config.decoder, shape, length, native.cache_dtype)
    state = State(kv_cache.flat(cache), jnp.zeros(shape, jnp.int32), jnp.zeros(shape[1], jnp.int32))
    times = []
    for _ in range(2 + repeats):  # the second may still capture graphs
        began = time.perf_counter()
        first = length - T - steps + 1
        state, codes = advance(
            native.weights,
            state,
            first,
            keys,
            native.sampling,
            T,
            steps=steps,
            static=native.static,
        )
        jax.block_until_ready(codes)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:]) / steps * 1000, times[0]


def measured(
    setting: Setting, native: NativeEngines, images: int, int8: Sequence[str]
) -> dict[str, Any]:
    """Whole pictures, from prompt ids to pixels on the host."""
    config, steps = native.config, native.config.vq.num_codes
    warm = native.do_warm(images, steps, steps)
    runs = [native.do_run(images, steps, seed) for seed in range(setting.repeats)]
    middle = lambda key: statistics.median(run[key] for run in runs)
    bytes_read = must_read(config, images, steps, PROMPT_LENGTH, setting.dtype, int8)
    row = {
        "seconds": middle("total"),
        "seconds_min": min(run["total"] for run in runs),
        "seconds_max": max(run["total"] for run in runs),
        "prefill_s": middle("prefill"),
        "vq_s": middle("vq"),
        "ms_per_step": middle("decode") / (steps - 1) * 1000,
        "images_per_s": images / middle("total"),
        "must_read_gb_per_step": bytes_read / (steps - 1) / 1e9,
        "peak_gib": max(run["peak"] for run in runs) / GIB,
        "compile_s": warm["compile"],
    }
    if setting.bandwidth:
        row["of_bandwidth"] = bytes_read / middle("decode") / setting.bandwidth
    return row


def answering(setting: Setting) -> Results:
    """One picture and a question: seconds to the first token, and tokens/s after it."""
    native = loaded(setting, setting.config())
    began = time.perf_counter()
    native.do_understand(ANSWER_TOKENS, PROMPT_LENGTH)
    yield {"first_call_s": time.perf_counter() - began}
    runs = [native.do_understand(ANSWER_TOKENS, PROMPT_LENGTH) for _ in range(setting.repeats)]
    rest = statistics.median(run["rest"] for run in runs)
    yield {
        "first_token_s": statistics.median(run["first"] for run in runs),
        "tokens_per_s": (ANSWER_TOKENS - 1) / rest,
        "ms_per_token": rest / (ANSWER_TOKENS - 1) * 1000,
    }
