"""What int8 costs: logits of given codes against those of bfloat16, as KL divergence and top-1 agreement.

python -m benchmarks.quality.int8 --checkpoint runs/janus_tiny --out int8.json

Codes are drawn by the bfloat16 model itself, so that every position is one that it reaches. Logits are the guided
ones at the checkpoint's own guidance and temperature 1. float32 stands next to them: it says how far bfloat16
itself is from the truth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from janus_jax import Janus
from janus_jax.config import Policy
from janus_jax.errors import run_main
from janus_jax.inference import make_sampling_params
from janus_jax.inference.generator import Request

PROMPTS = (
    "a red apple",
    "two owls and a bus",
    "a blue dog above a crab",
    "three ladybugs",
    "a picture of a house with a bus",
    "a green car on the left of a panda",
    "an apple",
    "four crabs",
)
VARIANTS = {
    "float32": {"policy": Policy()},
    "int8 weights": {"int8": ["weights"]},
    "int8 cache": {"int8": ["cache"]},
    "int8 weights and cache": {"int8": ["weights", "cache"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="runs/janus_tiny")
    parser.add_argument("--pictures", type=int, default=4, help="of each prompt")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    low = Policy("bfloat16", "bfloat16")
    base = Janus.load(args.checkpoint, policy=low)
    sampling, static = make_sampling_params(
        base.config.vq.codebook_size, base.processor.config.cfg_weight
    )
    requests = [
        Request(base.processor.generation_ids(prompt), i)
        for prompt in PROMPTS
        for i in range(args.pictures)
    ]

    def plan(janus):
        return janus.generator().arrange(requests, len(requests), static.guided, jax.random.key(0))

    prompts, keys = plan(base)
    codes, _ = base.image_engine.draw(base.weights, prompts, keys, sampling, static=static)

    def log_probabilities(janus):
        logits = janus.image_engine.score(janus.weights, plan(janus)[0], codes, sampling)
        return np.asarray(jax.nn.log_softmax(logits), np.float64)

    truth = log_probabilities(base)
    result = {}
    for name, options in VARIANTS.items():
        other = log_probabilities(Janus.load(args.checkpoint, **{"policy": low, **options}))
        kl = (np.exp(truth) * (truth - other)).sum(-1)
        same = truth.argmax(-1) == other.argmax(-1)
        result[name] = {
            "kl_mean": float(kl.mean()),
            "kl_99": float(np.quantile(kl, 0.99)),
            "top1": float(same.mean()),
            "positions": same.size,
        }
        print(f"{name:24} KL {kl.mean():.2e} nats (99 %: {np.quantile(kl, 0.99):.2e}), "
              f"same first choice {same.mean():.2%}")  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
