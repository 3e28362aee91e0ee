"""Compiles the server's blocks for a TPU without having one, and says what they copy and need.

PYTHONPATH=/tmp/libtpu python -m benchmarks.compiled.slots --model janus-pro-1b --topology v5e:2x2 --places 8

See `benchmarks.compiled.tpu` for libtpu. A block is compiled for all places and slots, and for half of them. Exit
code 1 if a step copies the cache that was filled before: each step would cost as much again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from benchmarks.compiled.hlo import Shapes, report
from benchmarks.compiled.tpu import HBM_GIB, memory, packed, topology_devices
from janus_jax.config import PRESETS, JanusConfig, Policy
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.inference.logits import SamplingParams
from janus_jax.inference.slots import PLAIN, Rows, SlotEngine, stacked
from janus_jax.parallel import make_mesh

POLICY = Policy("bfloat16", "bfloat16")


def make_engine(
    config: JanusConfig, codes: bool, slots: int, mesh: Mesh | None = None, int8: bool = False
) -> SlotEngine:
    """As the server has it, for a TPU."""
    steps = 48 if codes else 16
    dtype = "int8" if int8 else "bfloat16"
    return SlotEngine(config.decoder, 1 + codes, codes, slots, steps, dtype, mesh, platform="tpu")


def compile_block(
    config: JanusConfig,
    engine: SlotEngine,
    devices: Sequence[Any],
    places: int,
    rows: int,
    length: int,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Any], Any, Any]:
    """(what its loops copy, the program, the weights) of a block of `rows` of `places`."""
    weights = packed(config, POLICY, devices[0], mesh)
    where = engine.pool_sharding or SingleDeviceSharding(devices[0])
    shapes = jax.eval_shape(lambda: engine._empty(rows=places))
    pool = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
    ints, keys = np.zeros((3, rows), np.int32), np.zeros((3, rows), np.uint32)
    sampling = stacked([SamplingParams(5.0, 1.0, 1, 1.0)] * rows)
    now = Rows(*ints, *keys, sampling, np.int32(PLAIN))
    block = engine.block.lower(weights, pool, now, np.int32(1), rows=rows, length=length)
    compiled = block.compile()
    read = (rows, *pool[0]["k"].shape[1:3], length, config.decoder.head_dim)
    local = where.shard_shape(read) if mesh is not None else read
    return report(compiled.as_text(), Shapes({length: math.prod(local)}, set())), compiled, weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="janus-pro-1b")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--places", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the longest prompt")
    parser.add_argument("--context", type=int, default=4096, help="tokens of a conversation")
    parser.add_argument("--layers", type=int, help="of the language model; fewer")
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--int8-cache", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    generation = args.topology.partition(":")[0]
    if generation not in HBM_GIB:
        raise UserError(f"--topology must start with {', '.join(HBM_GIB)}; got {args.topology}")
    jax.config.update("jax_platforms", "cpu")
    devices = topology_devices(args.topology)
    config, mesh = PRESETS[args.model].replace(scan_layers=False), None
    if args.data * args.tensor != 1:
        mesh = make_mesh(data=args.data, tensor=args.tensor, devices=devices)
    if args.layers:
        config = config.replace(decoder=config.decoder.replace(layers=args.layers))
    found = {}
    for codes in (True, False):
        slots = args.prompt + config.vq.num_codes if codes else args.context
        engine = make_engine(config, codes, slots, mesh, args.int8_cache)
        sizes = {args.places: engine.slots}
        if args.data == 1:  # else the server has one size
            sizes[max(args.places // 2, 1)] = -(-engine.slots // 128) * 64
        for rows, length in sizes.items():
            began = time.perf_counter()
            shape = (devices, args.places, rows, length, mesh)
            copied, compiled, weights = compile_block(config, engine, *shape)
            name = f"{'pictures' if codes else 'answers'}, {rows} rows, {length} slots"
            found[name] = {
                "compile_seconds": round(time.perf_counter() - began, 1),
                "memory": memory(compiled, weights, HBM_GIB[generation]),
                **copied,
            }
            print(name, json.dumps(found[name], indent=1), flush=True)
    if args.out:
        args.out.write_text(json.dumps({**vars(args), "out": None, "blocks": found}, indent=1))
    copying = [name for name, block in found.items() if block["copies_cache"]]
    if copying:
        raise RunError(f"the steps of a block copy the cache: {'; '.join(copying)}")


if __name__ == "__main__":
    run_main(main)
