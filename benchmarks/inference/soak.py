"""Many mixed requests to one model: does memory grow, does anything compile after the warm-up?

python -m benchmarks.inference.soak --checkpoint runs/janus_tiny --requests 200 --out soak.json

Half of the requests draw (1 to 4 pictures of 1 or 2 prompts of many lengths, guided or not, some with previews),
half answer or hold a conversation. A first round of all kinds and sizes is the warm-up. Memory is the resident
set of the process, on a GPU also its allocator's.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from janus_jax import Janus
from janus_jax.errors import run_main

WORDS = "a red blue apple cat bus on the left of two three and picture".split()
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)


def resident() -> float:
    """MiB of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def on_device() -> float | None:
    """MiB in use on the accelerator."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return stats["bytes_in_use"] / 2**20 if stats else None


def request(janus: Janus, rng: np.random.Generator, words: int | None = None) -> None:
    """One request of a random kind and size."""
    text = lambda: " ".join(rng.choice(WORDS, words or int(rng.integers(1, 16))))
    kind = int(rng.integers(4))
    if kind == 0:
        prompts = [text() for _ in range(int(rng.integers(1, 3)))]
        weight = float(rng.choice([1.0, 1.5]))
        janus.generate_arrays(
            prompts, int(rng.choice([1, 2])), seed=int(rng.integers(99)), cfg_weight=weight
        )
    elif kind == 1:
        janus.generate_arrays(text(), 1, preview=lambda p: p.pixels(), seed=int(rng.integers(99)))
    elif kind == 2:
        count = int(rng.choice([1, 2]))
        asked = [text() for _ in range(count)]
        shown = [PICTURES[int(i)] for i in rng.integers(4, size=count)]
        janus.answer_batch(shown, asked, max_new_tokens=int(rng.integers(1, 40)))
    else:
        talk = janus.conversation(seed=int(rng.integers(99)))
        for turn in range(2):
            shown = [PICTURES[int(rng.integers(4))]] if turn == 0 else []
            list(talk.ask(text(), shown, max_new_tokens=int(rng.integers(1, 20))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="runs/janus_tiny")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--warm", type=int, default=200, help="requests of the warm-up")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    janus = Janus.load(args.checkpoint)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: (
            compiled.append(seconds) if name.endswith("backend_compile_duration") else None
        )
    )
    for i in tqdm(range(args.warm), desc="warm-up"):
        request(janus, np.random.default_rng(i))
    warm, memory, device = len(compiled), [], []
    for i in tqdm(range(args.requests), desc="requests"):
        # The same sizes in another order, with other words: shapes are known, contents are not.
        request(janus, np.random.default_rng(args.warm - 1 - i % args.warm))
        gc.collect()
        memory.append(resident())
        device.append(on_device())
    slope = np.polyfit(np.arange(len(memory)), memory, 1)[0]
    result = {
        "requests": args.requests,
        "programs_of_warm_up": warm,
        "programs_after_warm_up": len(compiled) - warm,
        "resident_mib": {"first": memory[0], "last": memory[-1], "most": max(memory)},
        "growth_mib_per_request": float(slope),
        "device_mib": None if device[0] is None else {"first": device[0], "last": device[-1]},
        "device": str(jax.devices()[0].device_kind),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
