"""A checkpoint in the official format with random bfloat16 weights, at a released model's true size.

python -m benchmarks.conversion.random_checkpoint --model janus-pro-7b --out /tmp/random_7b

The released weights cannot always be had; their sizes, names, shapes and files can. Weights have unit gain, so
that activations stay of size one. `--bin` writes pickled shards as the releases have them (needs torch).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from janus_jax.config import PRESETS, JanusConfig
from janus_jax.errors import UserError, run_main
from janus_jax.interop import OFFICIAL
from janus_jax.interop.configs.official import config_to_official
from janus_jax.interop.conversion.convert import expected_shapes
from janus_jax.processing import build_word_tokenizer

SHARD_BYTES = 9_990_000_000  # of the first file of Janus-Pro-7B
_POOL = 2**24 + 43  # odd, so that no two rows of a table repeat each other


def tensors(config: JanusConfig, seed: int):
    """(official name, bfloat16 array) of every tensor of the model."""
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal(_POOL, np.float32)
    for path, shape in expected_shapes(config).items():
        (slot,) = OFFICIAL.to_torch(path)
        shape = slot.torch_shape(shape)
        size = int(np.prod(shape))
        values = np.resize(np.roll(pool, int(rng.integers(_POOL))), size).reshape(shape)
        leaf = path.rsplit("/", 1)[-1]
        if leaf == "kernel":
            values *= np.prod(shape[1:]) ** -0.5  # [out, in, ...]
        elif leaf == "scale":
            values = 1 + 0.1 * values
        elif leaf == "bias":
            values *= 0.1
        yield slot.name, values.astype(ml_dtypes.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="janus-pro-1b")
    parser.add_argument("--layers", type=int, help="of the language model and the encoder; fewer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bin", action="store_true", help="pickled shards instead of safetensors")
    parser.add_argument(
        "--shard-gb", type=float, default=SHARD_BYTES / 1e9, help="of a file, at most"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = PRESETS[args.model].replace(scan_layers=False)
    if args.layers:
        config = config.replace(
            decoder=config.decoder.replace(layers=args.layers),
            siglip=config.siglip.replace(layers=min(args.layers, config.siglip.layers)),
        )
    if args.out.exists():
        raise UserError(f"{args.out} exists already")
    args.out.mkdir(parents=True)
    shards, state, size, listed = 0, {}, 0, {}
    suffix, stem = ("bin", "pytorch_model") if args.bin else ("safetensors", "model")

    def flush():
        nonlocal shards, state, size
        shards += 1
        name = f"{stem}-{shards:05d}.{suffix}"
        _save(args.out / name, state)
        listed.update(dict.fromkeys(state, name))
        state, size = {}, 0

    for name, value in tensors(config, args.seed):
        if size and size + value.nbytes > args.shard_gb * 1e9:
            flush()
        state[name] = value
        size += value.nbytes
    flush()
    index = args.out / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    (args.out / "config.json").write_text(json.dumps(config_to_official(config, "bfloat16")))
    tokenizer = build_word_tokenizer("a red cat what is it ?".split())
    (args.out / "tokenizer.json").write_text(tokenizer.to_json())
    print(f"{args.out}: {config.name}, {shards} file(s)")


def _save(path: Path, state: dict[str, np.ndarray]) -> None:
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(state, path)
        return
    import torch

    as_torch = lambda value: torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    torch.save({name: as_torch(value) for name, value in state.items()}, path)


if __name__ == "__main__":
    run_main(main)
