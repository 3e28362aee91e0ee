"""Whether a model fits on one TPU chip: drawing to pixels and answering about pictures, compiled without a TPU.

PYTHONPATH=/tmp/libtpu python -m benchmarks.compiled.fit --model janus-pro-7b --int8 weights,cache --out fit.json

For each number of pictures or answers: the programs that a call runs, what each needs of the device while all
weights are on it, and the largest of these. `--pixels none` leaves out the image tokenizer, which compiles for
minutes.
Exit code 1 if something does not fit. What a program needs is the compiler's own number; nothing has run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.compiled.tpu import (
    GIB,
    HBM_GIB,
    compile_drawing,
    device_bytes,
    packed,
    topology_devices,
)
from janus_jax.config import FLOAT_DTYPES, PRESETS, JanusConfig, Policy
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.inference import kv_cache
from janus_jax.inference.dialogue import list_answer_programs
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.image_engine import DECODE_CHUNK, ImageEngine
from janus_jax.inference.logits import make_sampling_params
from janus_jax.inference.programs import Program, ProgramList
from janus_jax.inference.schedule import AnswerSchedule, schedule_answers
from janus_jax.inference.text_engine import TextEngine


def memory_of(compiled: Any, weights: Weights, read: Weights, rest: Any = ()) -> dict[str, float]:
    """GiB that a program needs with all weights on the device.

    Args:
      compiled: the program.
      weights: everything that is on the device.
      read: those that it takes; the compiler counts them with its arguments.
      rest: its other arguments, with shardings.
    """
    stats = compiled.memory_analysis()
    arguments = max(
        stats.argument_size_in_bytes - device_bytes(read), device_bytes(rest), 0
    )  # the compiler leaves out what is not read, and pads what is
    parts = {
        "weights": device_bytes(weights),
        "arguments": arguments,
        "temporary": stats.temp_size_in_bytes,
        "output": max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes),
        "code": stats.generated_code_size_in_bytes,
    }
    needed = sum(parts.values())
    return {f"{name}_gib": round(value / GIB, 3) for name, value in parts.items()} | {
        "needed_gib": round(needed / GIB, 3)
    }


def placed(tree: Any, device: Any) -> Any:
    """Shapes of a tree of arrays, on a device that need not be here."""
    here = jax.sharding.SingleDeviceSharding(device)

    def place(x: Any) -> Any:
        if not hasattr(x, "dtype"):
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)

    return jax.tree.map(place, tree)


def answer_schedule(config: JanusConfig, rows: int, question: int, tokens: int) -> AnswerSchedule:
    """Of `rows` answers of so many tokens, each about a picture of its own."""
    return schedule_answers(rows, rows, config.siglip.num_patches + question, tokens)


def answer_programs(
    config: JanusConfig,
    policy: Policy,
    device: Any,
    weights: Weights,
    schedule: AnswerSchedule,
    cache_dtype: str | None,
) -> list[Program]:
    """What a turn of these sizes runs: of each function the program with the largest cache."""
    engine = TextEngine(config, policy, 0, 1, cache_dtype, platform="tpu")
    sampling, static = make_sampling_params(config.decoder.vocab_size, temperature=0)
    listed = ProgramList()
    side = config.siglip.image_size
    list_answer_programs(listed, engine, weights, schedule, side, sampling, static)
    last = {program.label: program for program in listed.programs if program.args}
    return [p._replace(args=placed(p.args, device)) for p in last.values()]


def drawing(
    config: JanusConfig, policy: Policy, device: Any, images: int, prompt: int, int8: Sequence[str]
) -> Iterator[tuple[str, Any, Weights, Any]]:
    """Yields (label, compiled, weights that it reads, other arguments): codes."""
    compiled, weights, _ = compile_drawing(
        config, policy, [device], images, prompt, None, int8, codes_only=True
    )
    read = {n: weights[n] for n in ("layers", "final_norm", "embed", "codes", "image_head")}
    yield "codes", compiled, read, ()


def pixels(
    config: JanusConfig, policy: Policy, device: Any, weights: Weights, images: int
) -> Iterator[tuple[str, Any, Weights, Any]]:
    """As `drawing`: the image tokenizer on all codes."""
    codes = jax.ShapeDtypeStruct((images, config.vq.num_codes), jnp.int32)
    codes = placed(codes, device)
    compiled = ImageEngine(config, policy, platform="tpu").pixels.lower(weights, codes).compile()
    yield "pixels", compiled, {"vq": weights["vq"]["decoder"]}, codes


def answering(
    config: JanusConfig,
    policy: Policy,
    device: Any,
    weights: Weights,
    schedule: AnswerSchedule,
    int8: Sequence[str],
) -> Iterator[tuple[str, Any, Weights, Any]]:
    """As `drawing`: SigLIP, prefill, a block of tokens with the longest cache, making it longer."""
    cache_dtype = "int8" if "cache" in int8 else None
    of_text = {name: weights[name] for name in ("layers", "final_norm", "embed", "lm_head")}
    read = {"features": {"vision": weights["vision"]}, "prefill": of_text, "block": of_text}
    for program in answer_programs(config, policy, device, weights, schedule, cache_dtype):
        rest = program.args[1:] if program.label in read else program.args
        compiled = program.function.lower(*program.args, **program.static).compile()
        yield program.label, compiled, read.get(program.label, {}), rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="janus-pro-7b")
    parser.add_argument("--topology", default="v5e:2x2", help="of which one chip is used")
    parser.add_argument("--images", default="1,4,16", help="pictures at once")
    parser.add_argument("--pixels", default="", help="of these numbers of pictures, or none")
    parser.add_argument("--answers", default="1,4,16", help="answers at once")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompts to draw")
    parser.add_argument("--question", type=int, default=64, help="tokens beside the picture's")
    parser.add_argument("--tokens", type=int, default=512, help="of an answer")
    parser.add_argument("--layers", type=int, help="of the language model; fewer")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, default="bfloat16")
    parser.add_argument("--int8", default="weights,cache")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    numbers = lambda text: [int(n) for n in text.split(",") if n and n != "none"]
    int8 = [name for name in args.int8.split(",") if name]
    if unknown := set(int8) - {"weights", "cache"}:
        raise UserError(f"--int8 can be weights and cache, not {', '.join(sorted(unknown))}")
    limit = HBM_GIB.get(args.topology.partition(":")[0])
    if limit is None:
        raise UserError(f"--topology must start with {', '.join(HBM_GIB)}; got {args.topology}")
    jax.config.update("jax_platforms", "cpu")
    device = topology_devices(args.topology)[0]
    config = PRESETS[args.model].replace(scan_layers=False)
    if args.layers:
        config = config.replace(decoder=config.decoder.replace(layers=args.layers))
    policy = Policy(args.dtype, args.dtype)
    weights = packed(config, policy, device, None, "weights" in int8)
    slot = kv_cache.bytes_per_slot(config.decoder, "int8" if "cache" in int8 else args.dtype)
    parts = {name: round(device_bytes(tree) / GIB, 3) for name, tree in weights.items()}
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.compiled.fit {' '.join(sys.argv[1:])}",
        "device_gib": limit,
        "weights_gib": {**parts, "total": round(device_bytes(weights) / GIB, 3)},
        "programs": [],
    }

    def add(what: str, count: int, cache_slots: int, made: Iterator) -> None:
        began = time.perf_counter()
        try:
            for label, compiled, read, rest in made:
                row = {"what": what, "count": count, "program": label}
                row["cache_gib"] = round(cache_slots * slot / GIB, 3)
                row |= memory_of(compiled, weights, read, rest)
                row["fits"] = row["needed_gib"] < limit
                row["compile_seconds"] = round(time.perf_counter() - began, 1)
                result["programs"].append(row)
                print(json.dumps(row), flush=True)
                began = time.perf_counter()
        except (RunError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXH" not in str(error):
                raise
            row = {"what": what, "count": count, "fits": False, "error": str(error).splitlines()[0]}
            result["programs"].append(row)
            print(json.dumps(row), flush=True)

    for n in numbers(args.images):
        slots = 2 * n * (args.prompt + config.vq.num_codes - 1)
        add("draw", n, slots, drawing(config, policy, device, n, args.prompt, int8))
    for n in numbers(args.answers):
        schedule = answer_schedule(config, n, args.question, args.tokens)
        slots = n * schedule.cache_lengths[-1]
        add("answer", n, slots, answering(config, policy, device, weights, schedule, int8))
    for n in numbers(
        args.pixels or ",".join(str(min(n, DECODE_CHUNK)) for n in numbers(args.images))
    ):
        add("draw", n, 0, pixels(config, policy, device, weights, n))
    result["needed_gib"] = max(row.get("needed_gib", math.inf) for row in result["programs"])
    result["fits"] = all(row["fits"] for row in result["programs"])
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if result["fits"] else 1)


if __name__ == "__main__":
    run_main(main)
