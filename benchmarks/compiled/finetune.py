"""What fine-tuning needs of a device, from steps that are compiled for TPUs that are not here.

    PYTHONPATH=DIR python -m benchmarks.compiled.finetune --out /tmp/finetune               # DIR: libtpu
    PYTHONPATH=DIR python -m benchmarks.compiled.finetune --out /tmp/finetune --rows lora_1b_v5e_1,lora_7b_v5e_4
    PYTHONPATH=DIR python -m benchmarks.compiled.finetune --out /tmp/finetune --json all.json

Every row is a command `train.py --config finetune:... --aot`; one whose JSON is in --out is not compiled again.
Most are compiled in a fifth of the time by asking XLA for a program that need not be fast; `EXACT` ones as they
would run. A row that the compiler refuses has its message, with what it would have used. Nothing has run.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.compiled.steps import compile_row
from janus_jax.errors import UserError, run_main
from janus_jax.files import atomic_write, write_json

_7B = "--config.model.preset=janus-pro-7b"
_INT8 = "--config.policy.frozen_dtype=int8"
_ROW = "--config.stages.finetune.accumulate=16"  # a row at a time
_OPTIMIZER = "--config.stages.finetune.options.optimizer"
_MOMENTS = [f"{_OPTIMIZER}.mu_dtype=bfloat16", f"{_OPTIMIZER}.nu_dtype=bfloat16"]
# Name -> (what it is, flags of train.py).
RECIPES: dict[str, tuple[str, list[str]]] = {
    "lora_1b": ("1B lora", ["finetune:lora"]),
    "lora_1b_int8": ("1B lora, int8", ["finetune:lora", _INT8]),
    "full_1b": ("1B full", ["finetune:full"]),
    "full_1b_small": (
        "1B full, bfloat16 moments, a row at a time",
        ["finetune:full", *_MOMENTS, _ROW],
    ),
    "lora_7b": ("7B lora", ["finetune:lora", _7B]),
    "lora_7b_int8": ("7B lora, int8", ["finetune:lora", _7B, _INT8]),
    "lora_7b_int8_small": (
        "7B lora, int8, a row at a time",
        ["finetune:lora", _7B, _INT8, _ROW],
    ),
    "full_7b": ("7B full", ["finetune:full", _7B]),
    "full_7b_small": (
        "7B full, bfloat16 moments, a row at a time",
        ["finetune:full", _7B, *_MOMENTS, _ROW],
    ),
}
# Name -> flags, which come after those of a recipe. The 16 rows of a step are 2 for each of 8 chips, which cannot
# be cut in 4 parts.
SLICES = {
    "v5e_1": ["--aot=v5e:1x1"],
    "v5p_1": ["--aot=v5p:1x1x1"],
    "v5e_4": ["--aot=v5e:2x2"],
    "v5e_8": ["--aot=v5e:2x4", "--config.stages.finetune.accumulate=2"],
    "v5e_16": ["--aot=v5e:4x4", "--config.stages.finetune.accumulate=1"],
    "v5p_4": ["--aot=v5p:2x2x1"],
}
CHIPS = ("v5e", "v5p")  # single ones: 16 and 95 GiB
SEVERAL = ("v5e_4", "v5e_8", "v5e_16", "v5p_4")
_CHOSEN = {
    "v5e_1": ("lora_1b", "lora_1b_int8", "lora_7b_int8_small"),
    "v5p_1": ("full_1b", "full_1b_small", "lora_7b", "lora_7b_int8", "full_7b_small"),
    "v5e_4": ("lora_7b", "lora_7b_int8", "full_1b", "lora_1b"),
    "v5e_8": ("lora_7b", "lora_7b_int8", "full_1b", "lora_1b", "full_7b"),
    "v5e_16": ("full_7b", "full_7b_small"),
    "v5p_4": ("full_7b",),
}
# Name -> (recipe, slice).
ROWS = {
    f"{recipe}_{place}": (recipe, place) for place, names in _CHOSEN.items() for recipe in names
}
EXACT = ("lora_1b_v5e_1", "lora_7b_v5e_4")
_QUICK = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
# GiB of devices that one can have, and the share that stays free (`janus_jax.run.fit`).
DEVICES = (16, 24, 40, 80, 140)
_FREE = 0.03
# What the compiler says of a step that it refuses: of all, or of temporaries alone where these are too large.
_REFUSALS = {
    "used_gib": r"Used ([\d.]+)G of",
    "temporary_gib": r"HLO temporaries \(([\d.]+)G\)",
}


def compile_one(name: str, directory: Path) -> dict[str, Any]:
    """One row: what `train.py --aot --out` writes, and "used_gib"; with "problem" where it does not fit."""
    recipe, place = ROWS[name]
    flags = [*RECIPES[recipe][1], *SLICES[place]]
    exact = name in EXACT
    out = directory / f"{name}.json"
    record = compile_row(flags, out, {} if exact else _QUICK)
    if "does not fit" in record.get("problem", ""):  # minutes of compiling, too
        write_json(out, {"finetune": {"problem": record["problem"]}})
    record = {"command": f"train.py --config {' '.join(flags)}", "quick": not exact} | record
    if "problem" in record:
        for key, message in _REFUSALS.items():
            if said := re.search(message, record["problem"]):
                record[key] = float(said[1])
    else:
        record["used_gib"] = record["memory_gib"]["total"]
    return record


def smallest_device(gib: float) -> str:
    """The smallest of `DEVICES` that has so much to give."""
    return next((str(n) for n in DEVICES if gib <= n * (1 - _FREE)), f"over {DEVICES[-1]}")


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown, a recipe a line: GiB a device, of which parameters and moments."""
    places = ["one device", "v5e 2x2", "v5e 2x4", "v5e 4x4", "v5p 2x2x1"]
    lines = [
        f"| | {' | '.join(places)} | one device of |",
        "|" + " --- |" * (len(places) + 2),
    ]
    for recipe, (what, _) in RECIPES.items():
        of = {place: found.get(f"{recipe}_{place}") for place in SLICES}
        one, chip = _smallest_chip(of)
        cells = [_cell(one) + chip, *(_cell(of[place]) for place in SEVERAL)]
        device = smallest_device(one["used_gib"]) if one and "used_gib" in one else ""
        if set(cells) != {""}:
            lines.append(f"| {what} | {' | '.join(cells)} | {device} |")
    return "\n".join(lines) + "\n"


def _smallest_chip(of: dict[str, dict[str, Any] | None]) -> tuple[dict[str, Any] | None, str]:
    """(record, " on" which): of the single chips the first that a step fits, else the last that was tried."""
    tried = [(of[f"{chip}_1"], f" on {chip}") for chip in CHIPS if of[f"{chip}_1"] is not None]
    fitting = [pair for pair in tried if pair[0].get("fits")]
    return (fitting or tried[::-1] or [(None, "")])[0]


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    if "temporary_gib" in record:
        return f"refused, temporaries {record['temporary_gib']:.1f}"
    if "used_gib" not in record:
        return record["problem"]
    if "problem" in record:
        return f"{record['used_gib']:.1f}, refused"
    held = record["parameters_gib"] + record["optimizer_gib"]
    no = "" if record["fits"] else ", does not fit"
    return f"**{record['used_gib']:.1f}** ({held:.1f}){no}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), metavar="NAME,..", help="%(default)s")
    parser.add_argument("--out", type=Path, required=True, help="directory of the JSON of each row")
    parser.add_argument("--json", type=Path, help="all of them in one file")
    args = parser.parse_args()
    names = args.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise UserError(f"--rows: {unknown[0]} is none of {', '.join(ROWS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, name in enumerate(names, 1):
        print(f"{number} of {len(names)}: {name}", file=sys.stderr, flush=True)
        found[name] = compile_one(name, args.out)
        atomic_write(args.out / "finetune.md", table(found))
        if args.json:
            write_json(args.json, found)
    print(table(found), end="")


if __name__ == "__main__":
    run_main(main)
