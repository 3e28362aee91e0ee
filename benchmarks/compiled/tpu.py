"""Compiles drawing for a TPU without having one, and says what the program copies and needs.

pip install --target /tmp/libtpu "libtpu==0.0.42.1"        # the one that jax 0.10.2 names; 700 MB
PYTHONPATH=/tmp/libtpu python -m benchmarks.compiled.tpu --model janus-pro-1b --topology v5e:2x2 --images 16

Exit code 1 if a loop over codes copies the KV cache: that would cost more than everything else a step
does. Evictions are reported apart: the compiler keeps in the memory on the chip what it finds best there,
and what it has changed there goes back. Most of the time goes into the image tokenizer (three minutes);
`--codes-only` leaves it out. libtpu compiles anywhere; only running needs the hardware.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from benchmarks.compiled.hlo import Shapes, report
from janus_jax import models
from janus_jax.config import FLOAT_DTYPES, PRESETS, JanusConfig, Policy
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.inference.fused_params import SPECS, Weights, fuse_params
from janus_jax.inference.image_engine import CACHE_BUCKET, ImageEngine, Prompts, blocks
from janus_jax.inference.logits import make_sampling_params
from janus_jax.parallel import BATCH_AXES, make_mesh, param_shardings

# So that libtpu looks for no TPU, neither on this machine nor on a metadata server.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any valid one: the topology asked for decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
GIB = 2**30
HBM_GIB = {"v5e": 16, "v5p": 95, "v6e": 32}  # the compiler itself keeps a little of it back


def has_libtpu() -> bool:
    """Whether libtpu is installed; a directory of that name is not enough."""
    found = importlib.util.find_spec("libtpu")
    return found is not None and found.origin is not None


def topology_devices(name: str) -> list[Any]:
    """Devices of a TPU topology such as "v5e:2x2", none of which need to be here.

    Raises:
      UserError: libtpu is not installed, or there is no such topology.
    """
    if not has_libtpu():
        raise UserError(
            "libtpu is not installed: pip install --target DIR libtpu==0.0.42.1, and run this with "
            "PYTHONPATH=DIR"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (jax.errors.JaxRuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"--topology {name}: {str(error).splitlines()[0]}") from None


def packed(
    config: JanusConfig, policy: Policy, device: Any, mesh: Mesh | None, int8: bool = False
) -> Weights:
    """Shapes of `weights.fuse_params`, and where each lies, without the weights."""
    model = models.JanusModel(config, policy)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), method="init_all")["params"])
    weights = jax.eval_shape(
        lambda p: fuse_params(p, config, policy, int8=int8, platform="tpu"), params
    )
    if mesh is None:
        here = SingleDeviceSharding(device)
        return jax.tree.map(lambda x: _placed(x, here), weights)
    shards = mesh.shape["tensor"]

    def place(path: Any, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        spec = next((SPECS[name] for name in reversed(names) if name in SPECS), P())
        # As in `fuse_params`: the scale of an int8 weight has axes of size 1.
        axes = [a if n % shards == 0 else None for a, n in zip(spec, x.shape, strict=False)]
        return _placed(x, NamedSharding(mesh, P(*axes)))

    vision = jax.tree.map(_placed, weights["vision"], param_shardings(weights["vision"], mesh))
    vq = jax.tree.map(lambda x: _placed(x, NamedSharding(mesh, P())), weights["vq"])
    rest = {name: tree for name, tree in weights.items() if name not in ("vision", "vq")}
    return jax.tree_util.tree_map_with_path(place, rest) | {"vision": vision, "vq": vq}


def _placed(x: jax.ShapeDtypeStruct, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def device_bytes(tree: Any) -> int:
    """Of one device, without padding; plain numbers among the arrays do not count."""
    local = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(local(x) for x in jax.tree.leaves(tree) if hasattr(x, "sharding"))


def shapes_of(
    config: JanusConfig, weights: Weights, images: int, prompt: int, mesh: Mesh | None
) -> Shapes:
    """Of guided drawing: what a device holds of each cache and of each large weight."""
    decoder, size = config.decoder, mesh.shape if mesh else dict.fromkeys(BATCH_AXES, 1)
    rows = 2 * images // math.prod(size[axis] for axis in BATCH_AXES)
    per_position = rows * decoder.kv_heads // size.get("tensor", 1) * decoder.head_dim
    lengths = [prompt + end - 1 for _, end in blocks(config.vq.num_codes, CACHE_BUCKET)]
    large = set()
    for x in jax.tree.leaves({k: v for k, v in weights.items() if k not in ("vision", "vq")}):
        dims = tuple(sorted(n for n in x.sharding.shard_shape(x.shape) if n > 1))
        if len(dims) > 1:
            large.add(dims)
    return Shapes({s: s * per_position for s in lengths}, large)


def compile_drawing(
    config: JanusConfig,
    policy: Policy,
    devices: Sequence[Any],
    images: int,
    prompt: int,
    mesh: Mesh | None = None,
    int8: Sequence[str] = (),
    codes_only: bool = False,
) -> tuple[Any, Weights, float]:
    """Guided, unfiltered drawing of one prompt: (compiled, its weights, seconds it took).

    Raises:
      RunError: it needs more memory than the device has.
    """
    config = config.replace(scan_layers=False)
    weights = packed(config, policy, devices[0], mesh, "weights" in int8)
    shape = jax.ShapeDtypeStruct
    prompts = Prompts(  # the conditional and the unconditional one
        shape((2, prompt), jnp.int32), shape((2, prompt), bool), shape((2, images), jnp.int32)
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
    sampling, static = make_sampling_params(config.vq.codebook_size, cfg_weight=5.0)
    cache_dtype = "int8" if "cache" in int8 else None
    engine = ImageEngine(config, policy, cache_dtype, mesh, platform="tpu")
    began = time.perf_counter()
    if codes_only:
        draw = jax.jit(lambda *args: engine.draw(*args, static=static)[0])
        lowered = draw.lower(weights, prompts, keys, sampling)
    else:
        lowered = engine.draw.lower(weights, prompts, keys, sampling, static=static)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise RunError(f"does not fit: {str(error).splitlines()[0]}") from None
    return compiled, weights, time.perf_counter() - began


def memory(compiled: Any, weights: Weights, limit_gib: float) -> dict[str, Any]:
    """GiB of one device. All weights count, also those that drawing does not read."""
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
        "all_weights": device_bytes(weights),
    }
    needed = sum(parts[k] for k in ("temporary", "output", "code"))
    needed += max(parts["arguments"], parts["all_weights"])
    out = {f"{name}_gib": round(value / GIB, 3) for name, value in parts.items()}
    return out | {
        "needed_gib": round(needed / GIB, 3),
        "device_gib": limit_gib,
        "fits": needed < limit_gib * GIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="janus-pro-1b")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompts")
    parser.add_argument("--layers", type=int, help="of the language model; fewer")
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, default="bfloat16")
    parser.add_argument("--int8", default="", help="weights, cache or both, comma-separated")
    parser.add_argument("--codes-only", action="store_true", help="without the image tokenizer")
    parser.add_argument("--text", type=Path, help="also write the program's text here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    int8 = [name for name in args.int8.split(",") if name]
    if unknown := set(int8) - {"weights", "cache"}:
        raise UserError(f"--int8 can be weights and cache, not {', '.join(sorted(unknown))}")
    generation = args.topology.partition(":")[0]
    if generation not in HBM_GIB:
        raise UserError(f"--topology must start with {', '.join(HBM_GIB)}; got {args.topology}")
    jax.config.update("jax_platforms", "cpu")
    devices = topology_devices(args.topology)
    mesh = None
    if args.data * args.tensor != 1:
        mesh = make_mesh(data=args.data, tensor=args.tensor, devices=devices)
    if args.images % args.data:
        raise UserError(f"--data {args.data} does not divide --images {args.images}")
    config = PRESETS[args.model]
    if args.layers:
        config = config.replace(decoder=config.decoder.replace(layers=args.layers))
    policy = Policy(args.dtype, args.dtype)
    compiled, weights, seconds = compile_drawing(
        config, policy, devices, args.images, args.prompt, mesh, int8, args.codes_only
    )
    text = compiled.as_text()
    if args.text:
        args.text.write_text(text)
    result = {
        **{k: v for k, v in vars(args).items() if k not in ("out", "text")},
        "layers": config.decoder.layers,
        "compile_seconds": round(seconds, 1),
        "memory": memory(compiled, weights, HBM_GIB[generation]),
        **report(text, shapes_of(config, weights, args.images, args.prompt, mesh)),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    for loop in result["loops"]:
        if loop["cache_copies"]:
            first = loop["cache_copies"][0]
            raise RunError(
                f"the loop over {loop['slots']} slots copies the cache: {first['count']} x "
                f"{first['opcode']} of {first['array']} a step"
            )
    if len(result["loops"]) != len(blocks(config.vq.num_codes, CACHE_BUCKET)):
        raise RunError(
            f"found {len(result['loops'])} loops that carry a cache, not "
            f"{len(blocks(config.vq.num_codes, CACHE_BUCKET))}: the checks above looked at too little"
        )


if __name__ == "__main__":
    run_main(main)
