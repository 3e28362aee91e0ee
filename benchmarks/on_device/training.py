"""The training step as `train.py` runs it, on packed rows of random content."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.inference.models import shrink
from benchmarks.on_device.setting import GIB, Results, Setting, fill
from benchmarks.train.rows import pack_row
from janus_jax.config import JanusConfig, Policy
from janus_jax.processing import sequence

STEPS = 3
WIDE_LAYERS = 4  # with embeddings and optimizer some 27 GiB of Janus-Pro-7B
TEXT = 30  # ids of a prompt, of a question with its answer beside the picture, and of a text's multiple


def training(setting: Setting) -> Results:
    """Stage 2 (adaptors and language model train), float32 parameters and bfloat16 arithmetic."""
    yield from _steps(setting, setting.config())


def wide_training(setting: Setting) -> Results:
    """The same with a few layers of the large model: its width, in the memory of one device."""
    yield from _steps(setting, shrink(setting.config(large=True), WIDE_LAYERS))


def _steps(setting: Setting, config: JanusConfig) -> Results:
    found: dict[str, Any] = {}
    for rows, how in itertools.product(setting.rows, setting.steps):
        name = f"{rows} rows, {how}"
        try:
            found[name] = _measure(setting, config, rows, *how.split("+", 1))
        except Exception as error:  # out of memory, or a back end that this card lacks
            found[name] = {"problem": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        yield {"step": found}


def _measure(
    setting: Setting, config: JanusConfig, rows: int, attention: str, remat: str
) -> dict[str, Any]:
    import jax

    from janus_jax import models
    from janus_jax.parallel import global_batch, make_mesh, param_shardings, state_shardings
    from janus_jax.training import TRAINABLE, Stage, init_state, make_step
    from janus_jax.training.content import content
    from janus_jax.training.flops import StepFlops

    config = config.replace(scan_layers=True)
    policy = Policy("float32", setting.dtype)
    model = models.JanusModel(config, policy, remat=remat, attention=attention, targets_at_once=512)
    stage = Stage("stage2", "janus", TRAINABLE["stage2"], 10, 1e-4, 0, rows, ratio=(2, 3, 5))
    mesh = make_mesh(fsdp=-1)
    params = fill(jax.eval_shape(lambda: models.init_params(model, jax.random.key(0))))
    count = StepFlops(config, stage, params, remat)
    params = jax.device_put(params, param_shardings(params, mesh))
    state, frozen = init_state(stage, params)
    del params
    state = jax.device_put(state, state_shardings(state, mesh))
    host = packed_rows(config, rows)
    batch = global_batch(host, mesh)
    step = make_step(model, stage, pad_id=0)

    began = time.perf_counter()
    state, metrics = step(state, frozen, batch, 0)
    loss = float(metrics["loss"])
    first = time.perf_counter() - began
    seconds = []
    for i in range(STEPS):
        began = time.perf_counter()
        state, metrics = step(state, frozen, batch, 1 + i)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    stats = jax.devices()[0].memory_stats() or {}
    took, tokens = statistics.median(seconds), int((host["segment_ids"] > 0).sum())
    flops = count(content(host, config.siglip.num_patches)).model
    row = {
        "seconds": took,
        "seconds_min": min(seconds),
        "tokens": tokens,
        "tokens_per_s": tokens / took,
        "model_tflop": flops / 1e12,
        "model_tflops_per_s": flops / took / 1e12,
        "peak_gib": stats.get("peak_bytes_in_use", 0) / GIB or None,
        "first_step_s": first,  # compiles
        "loss": loss,
        "last_loss": float(metrics["loss"]),
    }
    if setting.matmul_rate:
        row["mfu"] = flops / took / setting.matmul_rate
    return row


def row_shape(config: JanusConfig) -> dict[str, int]:
    """Room in a row: that of the released models' configs, or less where the model has fewer positions."""
    if config.decoder.max_position >= 4096 and config.vq.num_codes == 576:
        return {"tokens": 4096, "targets": 2048, "und_images": 6, "gen_images": 7}
    return {
        "tokens": 4 * (config.vq.num_codes + TEXT),
        "targets": 3 * TEXT,
        "und_images": 1,
        "gen_images": 2,
    }


def packed_rows(config: JanusConfig, rows: int) -> dict[str, np.ndarray]:
    """A batch as `data.pack` makes it: half of the pictures' room is used, as text fills rows."""
    room = row_shape(config)
    rng = np.random.default_rng(0)
    words = lambda n: rng.integers(6, config.decoder.vocab_size - 1, n).tolist()
    image_id, codes, patches = 5, config.vq.num_codes, config.siglip.num_patches
    pixels = lambda size: rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
    und_size, gen_size = config.siglip.image_size, config.vq.image_size
    batch = []
    for _ in range(rows):
        parts = []
        for _ in range(max(1, room["gen_images"] // 2)):
            args = (words(TEXT), image_id, codes, pixels(gen_size), und_size)
            parts.append(sequence.generation_sequence(*args))
        for _ in range(max(1, room["und_images"] // 3)):
            asked = [1, *[image_id] * patches, *words(TEXT // 2)]
            image = pixels(und_size)[None]
            turns = [(asked, words(TEXT // 2))]
            parts.append(sequence.conversation(turns, image_id, image, gen_size))
        left = room["tokens"] - sum(len(part["tokens"]) for part in parts)
        text = min(left, room["targets"] - TEXT)
        parts.append(sequence.text_sequence(words(text), und_size, gen_size))
        batch.append(pack_row(parts, room))
    return {name: np.stack([row[name] for row in batch]) for name in batch[0]}
