"""Compiles drawing for a TPU without having one, and says what the program copies and needs.

pip install --target /tmp/libtpu "libtpu==0.0.42.1"        # the one that jax 0.10.2 names; 700 MB
PYTHONPATH=/tmp/libtpu python benchmarks/tpu_program.py --model janus-pro-1b --topology v5e:2x2 --images 16

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
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from janus_jax import models
from janus_jax.config import FLOAT_DTYPES, PRESETS, JanusConfig, Policy
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.parallel import BATCH_AXES, make_mesh, param_shardings
from janus_jax.sampling.image_engine import WINDOW, ImageEngine, Prompts, blocks
from janus_jax.sampling.logits import make_knobs
from janus_jax.sampling.weights import SPECS, Weights, pack

# So that libtpu looks for no TPU, neither on this machine nor on a metadata server.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any valid one: the topology asked for decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
GIB = 2**30
HBM_GIB = {"v5e": 16, "v5p": 95, "v6e": 32}  # the compiler itself keeps a little of it back
# An update that replaces a whole cache: of a stack of layers that is scanned.
_WHOLE = "dynamic-update-slice of all"
_COPIES = {"copy", "copy-start", "transpose", _WHOLE}
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call"}
_FREE |= {"dynamic-update-slice", "copy-done", "opt-barrier", "constant"}
# What an asynchronous operation does is in the computation that it calls; slices end on the chip.
_FREE |= {f"{what}-{part}" for what in ("async", "slice") for part in ("start", "update", "done")}
# Out of the memory on the chip, where the compiler chose to keep it for a while.
_EVICT = "evict"
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}


# --- The program as text ---------------------------------------------------------------------------


class Array(NamedTuple):
    """One array of an instruction's result, per device."""

    dtype: str
    dims: tuple[int, ...]
    layout: str  # order of the axes and tiles, without the memory space
    space: str  # "" is the device's main memory, S(1) is on the chip

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.size * _BITS.get(self.dtype, 32) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    called: dict[str, str]  # attribute -> computation
    literal: str  # what stands in the brackets, of a constant or a parameter
    root: bool


class Computation(NamedTuple):
    entry: bool
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)


_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply)=%?([\w.\-]+)")


def parse(text: str) -> dict[str, Computation]:
    """The optimized HLO text of a compiled program, by computation."""
    computations: dict[str, Computation] = {}
    inside: dict[str, Instruction] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            inside = {}
            computations[head[2]] = Computation(bool(head[1]), inside)
        elif match := _LINE.match(line):
            instruction = _instruction(match[2], match[3], bool(match[1]))
            inside[instruction.name] = instruction
    return computations


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    arrays = tuple(_array(m) for m in _ARRAY.finditer(rest[:end]))
    call = rest[end:].strip()
    opcode, call = call.split("(", 1)
    end = _closing("(" + call) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", call[:end]))
    called = dict(_CALLED.findall(call[end:].split(", metadata=")[0]))
    return Instruction(name, arrays, opcode, operands, called, call[: end - 1], root)


def _closing(text: str) -> int:
    """The end of the bracket that `text` starts with."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def _array(match: re.Match[str]) -> Array:
    dims = tuple(int(n) for n in match[2].split(",") if n)
    space = re.search(r"S\(\d+\)", match[3] or "")
    layout = (match[3] or "").replace(space[0], "") if space else match[3] or ""
    return Array(match[1], dims, layout, space[0] if space else "")


# --- What it copies --------------------------------------------------------------------------------


class Shapes(NamedTuple):
    """What to look for, per device.

    Attributes:
      slots: S -> the elements of one layer's keys, [C, B, K, S, H].
      weights: the axes above 1 of every large weight, sorted.
    """

    slots: dict[int, int]
    weights: set[tuple[int, ...]]

    def kind(self, array: Array) -> str | None:
        """ "weight", "cache" or None; by size, since the compiler reorders and merges axes."""
        if tuple(sorted(n for n in array.dims if n > 1)) in self.weights:
            return "weight"
        for slots, size in self.slots.items():
            # Or the caches of several layers in one array.
            several = array.size and array.size % size == 0 and slots in array.dims
            if array.size == size or several:
                return "cache"
        return None


class Written(NamedTuple):
    """A whole cache or weight that an instruction writes."""

    kind: str
    what: str  # opcode, or that of the root of a fusion, or _EVICT
    array: Array
    relaid: bool  # in another layout than it was read in


def written(computation: Computation, program: dict[str, Computation], shapes: Shapes):
    """Yields the caches and weights that `computation` itself writes as a whole.

    An update in place of a few slots writes no whole cache, and to read one into the memory on the chip
    is what reading is. A copy within that memory counts: it is there only because the test is small.
    """
    for instruction in computation.instructions.values():
        for array, opcode in _results(instruction, program, shapes):
            kind = None if opcode in _FREE else shapes.kind(array)
            if kind is None or (array.space and opcode not in ("copy", "transpose", _WHOLE)):
                continue
            before = _source(instruction, computation)
            relaid = opcode == "transpose" or before.layout != array.layout
            if opcode == "copy-start" and before.space and not relaid:
                opcode = _EVICT
            yield Written(kind, opcode, array, relaid)


def _source(instruction: Instruction, computation: Computation) -> Array:
    """What the first operand of a copy is, or the result itself if that is unknown."""
    if instruction.opcode == "copy-start":
        return instruction.arrays[1]
    operand = computation.instructions.get(next(iter(instruction.operands), ""))
    return operand.arrays[0] if operand and operand.arrays else instruction.arrays[0]


def _results(
    instruction: Instruction, program: dict[str, Computation], shapes: Shapes
) -> list[tuple[Array, str]]:
    """(array, opcode that made it) of each result; looks into fusions."""
    if instruction.opcode == "copy-start":  # (destination, source, context)
        return [(instruction.arrays[0], "copy-start")]
    if instruction.opcode != "fusion":
        return [(array, instruction.opcode) for array in instruction.arrays]
    inner = program[instruction.called["calls"]].instructions
    root = next(i for i in inner.values() if i.root)
    made = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]

    def origin(i: Instruction) -> str:
        while i.opcode == "bitcast":
            i = inner[i.operands[0]]
        if i.opcode == "dynamic-update-slice" and shapes.kind(inner[i.operands[1]].arrays[0]):
            return _WHOLE
        return i.opcode if i.opcode != "parameter" else "copy"

    return list(zip(instruction.arrays, map(origin, made), strict=False))


def reached(name: str, program: dict[str, Computation]) -> Iterator[Computation]:
    """A computation and all that it runs, fusions apart."""
    computation = program[name]
    yield computation
    for instruction in computation.instructions.values():
        if instruction.opcode not in ("fusion", "reduce", "sort", "scatter", "all-reduce"):
            for callee in instruction.called.values():
                yield from reached(callee, program)


def loops(program: dict[str, Computation], shapes: Shapes) -> list[dict[str, Any]]:
    """Every outermost loop that carries a cache: its slots, steps, copies and collectives."""
    entry = next(c for c in program.values() if c.entry)
    found = []
    for loop in entry.instructions.values():
        carried = [a for a in loop.arrays if shapes.kind(a) == "cache"]
        if loop.opcode != "while" or not carried:
            continue
        slots = max(s for s in shapes.slots if any(s in a.dims for a in carried))
        body = list(reached(loop.called["body"], program))
        all_written = [w for c in body for w in written(c, program, shapes)]
        copied = [w for w in all_written if w.what in _COPIES]
        found.append(
            {
                "slots": slots,
                "steps": trip_count(program[loop.called["condition"]]),
                "cache_layout": carried[0].layout,
                "cache_copies": _counted(w for w in copied if w.kind == "cache"),
                "weight_copies": _counted(w for w in copied if w.kind == "weight"),
                "evictions": _counted(w for w in all_written if w.what == _EVICT),
                # Such as an int8 weight that is written in bfloat16 before it is used.
                "other_full_size": _counted(
                    w for w in all_written if w.what not in _COPIES | {_EVICT}
                ),
                "collectives": collectives(body),
            }
        )
    return found


def trip_count(condition: Computation) -> int | None:
    """Of a loop that counts from 0: the constant that its counter is compared with."""
    names = condition.root.operands
    values = [condition.instructions[n] for n in names]
    numbers = [int(v.literal) for v in values if v.opcode == "constant"]
    return numbers[0] if len(numbers) == 1 else None


def collectives(computations: Sequence[Computation]) -> dict[str, dict[str, int]]:
    """How many of each kind, and the bytes of their results."""
    found: dict[str, dict[str, int]] = {}
    for instruction in (i for c in computations for i in c.instructions.values()):
        name = instruction.opcode.removesuffix("-start")
        if name in _COLLECTIVES:
            total = found.setdefault(name, {"count": 0, "bytes": 0})
            total["count"] += 1
            total["bytes"] += instruction.arrays[-1].bytes
    return found


def _counted(items: Any) -> list[dict[str, Any]]:
    counts = Counter((w.what, str(w.array), w.array.bytes, w.relaid) for w in items)
    names = ("opcode", "array", "bytes", "relaid")
    return [dict(zip(names, key, strict=True)) | {"count": n} for key, n in counts.items()]


def report(text: str, shapes: Shapes) -> dict[str, Any]:
    """What there is to say about a compiled program's text."""
    program = parse(text)
    entry = next(name for name, c in program.items() if c.entry)
    once = [w for w in written(program[entry], program, shapes) if w.kind == "weight"]
    copied = [w for w in once if w.what in _COPIES]
    found = loops(program, shapes)
    return {
        "loops": found,
        "copies_cache": any(loop["cache_copies"] for loop in found),
        "weight_copies": _counted(copied),
        "weight_copies_bytes": sum(w.array.bytes for w in copied),
        "weight_evictions_bytes": sum(w.array.bytes for w in once if w.what == _EVICT),
    }


# --- Compiling -------------------------------------------------------------------------------------


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
    """Shapes of `weights.pack`, and where each lies, without the weights."""
    model = models.Janus(config, policy)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), method="touch")["params"])
    weights = jax.eval_shape(lambda p: pack(p, config, policy, int8=int8), params)
    if mesh is None:
        here = SingleDeviceSharding(device)
        return jax.tree.map(lambda x: _placed(x, here), weights)
    shards = mesh.shape["tensor"]

    def place(path: Any, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        spec = next((SPECS[name] for name in reversed(names) if name in SPECS), P())
        # As in `pack`: the scale of an int8 weight has axes of size 1.
        axes = [a if n % shards == 0 else None for a, n in zip(spec, x.shape, strict=False)]
        return _placed(x, NamedSharding(mesh, P(*axes)))

    vision = jax.tree.map(_placed, weights["vision"], param_shardings(weights["vision"], mesh))
    vq = jax.tree.map(lambda x: _placed(x, NamedSharding(mesh, P())), weights["vq"])
    rest = {name: tree for name, tree in weights.items() if name not in ("vision", "vq")}
    return jax.tree_util.tree_map_with_path(place, rest) | {"vision": vision, "vq": vq}


def _placed(x: jax.ShapeDtypeStruct, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def device_bytes(tree: Any) -> int:
    """Of one device, without padding."""
    local = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(map(local, jax.tree.leaves(tree)))


def shapes_of(
    config: JanusConfig, weights: Weights, images: int, prompt: int, mesh: Mesh | None
) -> Shapes:
    """Of guided drawing: what a device holds of each cache and of each large weight."""
    decoder, size = config.decoder, mesh.shape if mesh else dict.fromkeys(BATCH_AXES, 1)
    rows = 2 * images // math.prod(size[axis] for axis in BATCH_AXES)
    each = rows * decoder.kv_heads // size.get("tensor", 1) * decoder.head_dim
    lengths = [prompt + end - 1 for _, end in blocks(config.vq.num_codes, WINDOW)]
    large = set()
    for x in jax.tree.leaves({k: v for k, v in weights.items() if k not in ("vision", "vq")}):
        dims = tuple(sorted(n for n in x.sharding.shard_shape(x.shape) if n > 1))
        if len(dims) > 1:
            large.add(dims)
    return Shapes({s: s * each for s in lengths}, large)


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
    knobs, mode = make_knobs(config.vq.codebook_size, cfg_weight=5.0)
    engine = ImageEngine(config, policy, "int8" if "cache" in int8 else None, mesh=mesh)
    began = time.perf_counter()
    if codes_only:
        draw = jax.jit(lambda *args: engine.draw(*args, mode=mode)[0])
        lowered = draw.lower(weights, prompts, keys, knobs)
    else:
        lowered = engine.draw.lower(weights, prompts, keys, knobs, mode=mode)
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
        "output": stats.output_size_in_bytes,
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
    if len(result["loops"]) != len(blocks(config.vq.num_codes, WINDOW)):
        raise RunError(
            f"found {len(result['loops'])} loops that carry a cache, not "
            f"{len(blocks(config.vq.num_codes, WINDOW))}: the checks above looked at too little"
        )


if __name__ == "__main__":
    run_main(main)
