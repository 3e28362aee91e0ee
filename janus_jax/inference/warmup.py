"""Compiles what sampling will need before the first request comes, without running any of it.

Lengths are bucketed, so that the programs can be listed. JAX remembers what is compiled here for the calls
that follow, and keeps it on disk where a compilation cache is set (`compilation.enable_compilation_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference import kv_cache
from janus_jax.inference.batching import bucket, padded_size
from janus_jax.inference.dialogue import ROOM
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.generator import ImageGenerator, Request, plan_blocks
from janus_jax.inference.image_engine import ImageEngine
from janus_jax.inference.logits import SamplingParams, StaticSampling
from janus_jax.inference.text_engine import BLOCK, Answer, TextEngine

Program = tuple[str, Callable[[], Any]]  # what it is, and a function that compiles it


def buckets(least: int, most: int, unit: int | None = None) -> list[int]:
    """All lengths that `bucket` gives for `least`, ..., `most`."""
    units = () if unit is None else (unit,)
    return sorted({bucket(n, *units) for n in range(least, most + 1)})


def drawing_programs(
    engine: ImageEngine,
    drawer: ImageGenerator,
    weights: Weights,
    lengths: list[int],
    pictures: int,
    most: int,
    knobs: SamplingParams,
    mode: StaticSampling,
    total: int,
    every: int | None,
) -> Iterator[Program]:
    """Programs that draw `pictures` pictures of one prompt of each bucketed length.

    Args:
      every: codes between two previews; None is without.
    """
    for T in lengths:
        # The last id of any length fits: ids are data, only shapes are compiled.
        batch = [Request([0] * T, 0)] * pictures
        prompts, keys = drawer.arrange(batch, most, mode.guided, jax.random.key(0))
        if mode.guided and len(prompts.ids) == 1:  # a real unconditional prompt is another one
            twice = lambda x: np.concatenate([x, x])
            prompts = prompts._replace(ids=twice(prompts.ids), mask=twice(prompts.mask))
        name = f"{pictures} pictures, prompts of up to {T} tokens"
        if every is None:
            yield name, lambda p=prompts, k=keys: engine.draw.lower(weights, p, k, knobs, mode=mode)
            continue
        start = lambda p=prompts, k=keys: engine.start.lower(weights, p, k, knobs, mode=mode)
        state, _ = jax.eval_shape(
            lambda w, p, k: engine.start(w, p, k, knobs, mode=mode), weights, prompts, keys
        )
        yield name, start
        seen = set()
        for begin, steps, length in plan_blocks(T, total, every, engine.window):
            if length > kv_cache.slots(state.cache):
                yield name, lambda s=state, n=length: engine.grow.lower(s, length=n)
                state = jax.eval_shape(lambda s, n=length: engine.grow(s, length=n), state)
            if (steps, length) not in seen:
                seen.add((steps, length))
                yield (
                    f"{name}, {steps} codes, {length} slots",
                    lambda s=state, b=begin, n=steps, k=keys, t=T: engine.advance.lower(
                        weights, s, b, k, knobs, t, steps=n, mode=mode
                    ),
                )


def answering_programs(
    engine: TextEngine,
    weights: Weights,
    image_size: int,
    lengths: list[int],
    answers: int,
    max_new_tokens: int,
    knobs: SamplingParams,
    mode: StaticSampling,
) -> Iterator[Program]:
    """Programs that answer `answers` questions, each about its own picture, of each bucketed length."""
    rows = padded_size(answers, 1 << 30)
    shape = jax.ShapeDtypeStruct
    pixels = shape((rows, image_size, image_size, 3), jnp.uint8)
    yield f"{rows} pictures to look at", lambda: engine.features.lower(weights, pixels)
    features = jax.eval_shape(engine.features, weights, pixels)
    keys = jnp.broadcast_to(jax.random.key(0), (rows,))
    most = shape((rows,), jnp.int32)
    rooms = set()
    for T in lengths:
        ids, mask = shape((rows, T), jnp.int32), shape((rows, T), bool)
        first = bucket(T + BLOCK, ROOM)
        rooms |= set(buckets(T + BLOCK, T + max_new_tokens + BLOCK, ROOM))
        state = jax.eval_shape(lambda n=first: engine.empty(rows, n))
        yield (
            f"{rows} answers, questions of up to {T} tokens",
            lambda s=state, i=ids, m=mask: engine.prefill.lower(
                weights, s, i, m, features, i, most, keys, knobs, mode=mode
            ),
        )
    for length in sorted(rooms):
        state = jax.eval_shape(lambda n=length: engine.empty(rows, n))
        nobody = shape((rows,), bool)
        answer = Answer(most, nobody, nobody, nobody, shape((), jnp.int32))
        yield (
            f"{rows} answers, conversations of up to {length} tokens",
            lambda s=state, a=answer: engine.block.lower(
                weights, s, a, most, keys, knobs, mode=mode
            ),
        )
