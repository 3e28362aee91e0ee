"""The training step compiled for TPU slices that are not here: the table of docs/scale.md.

    PYTHONPATH=DIR python -m benchmarks.compiled.steps --out /tmp/steps                   # DIR: libtpu
    PYTHONPATH=DIR python -m benchmarks.compiled.steps --out /tmp/steps --rows 1b_16,7b

Every row is a command `train.py ... --aot`, some minutes long; a row whose JSON is there is not compiled again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.paths import ROOT
from janus_jax.errors import UserError, run_main
from janus_jax.files import atomic_write, read_json

_STAGE2 = "config.stages.stage2"
# Name -> (what it is, flags of train.py).
ROWS: dict[str, tuple[str, list[str]]] = {
    "7b": ("7B stage 2, the paper's batch", ["janus_pro_7b:stage2", "--aot=v5e:16x16"]),
    "7b_v5p": (
        "7B stage 2, remat dots, codes",
        [
            "janus_pro_7b:stage2",
            "--aot=v5p:4x4x4",
            "--codes",
            f"--{_STAGE2}.batch_size=128",
            "--config.policy.remat=dots",
        ],
    ),
    "7b_stage1": (
        "7B stage 1 (language model frozen), codes",
        ["janus_pro_7b:stage1", "--aot=v5e:16x16", "--codes"],
    ),
    "1b_16": (
        "1B stage 2, codes",
        ["janus_pro_1b:stage2", "--aot=v5e:4x4", "--codes", f"--{_STAGE2}.batch_size=32"],
    ),
    "1b_paper_64": (
        "1B stage 2, the paper's batch in 4 parts, codes",
        ["janus_pro_1b:stage2", "--aot=v5e:8x8", "--codes", f"--{_STAGE2}.accumulate=4"],
    ),
    "1b_v6e": (
        "1B stage 2, the paper's batch in 4 parts, codes",
        ["janus_pro_1b:stage2", "--aot=v6e:8x8", "--codes", f"--{_STAGE2}.accumulate=4"],
    ),
    # The same work for each chip, on more and more chips.
    **{
        f"1b_v5p_{chips}": (
            "1B stage 2, a row a chip, codes",
            [
                "janus_pro_1b:stage2",
                f"--aot=v5p:{shape}",
                "--codes",
                f"--{_STAGE2}.batch_size={chips}",
            ],
        )
        for chips, shape in ((16, "2x2x4"), (64, "4x4x4"), (256, "4x8x8"), (1024, "8x8x16"))
    },
}
_HEADER = (
    "step | slice | rows | GiB a chip, of | parameters + optimizer | temporaries | moved a chip, GiB "
    "| compiled in"
)


def compile_row(
    flags: Sequence[str], out: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """One row, from its JSON or compiled now.

    Args:
      flags: of train.py; the first is the config.
      out: the JSON.
      environment: variables to set, beside those of this process.

    Returns:
      What `train.py --aot --out` writes of its stage, or {"problem": its last line}.
    """
    if not out.exists():
        command = [sys.executable, "train.py", "--config", *flags, "--out", str(out.resolve())]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
        )
        if not out.exists():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"problem": lines[-1]}
    (record,) = read_json(out).values()
    return record


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| {_HEADER} |", "|" + " --- |" * (_HEADER.count("|") + 1)]
    for name, x in found.items():
        what = ROWS[name][0]
        if "problem" in x:
            lines.append(f"| {what} | {x['problem']} |" + " |" * 6)
            continue
        memory = x["memory_gib"]
        moved = sum(c["bytes"] for c in x["collectives"].values()) / 2**30
        lines.append(
            f"| {what} | {x['topology']} | {x['rows']} | **{memory['total']:.1f}** of {x['limit_gib']:.0f} | "
            f"{x['parameters_gib'] + x['optimizer_gib']:.2f} | {memory['temporary']:.1f} | {moved:.1f} | "
            f"{x['compile_seconds']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), metavar="NAME,..", help="%(default)s")
    parser.add_argument("--out", type=Path, required=True, help="directory of the JSON of each row")
    args = parser.parse_args()
    names = args.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise UserError(f"--rows: {unknown[0]} is none of {', '.join(ROWS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, name in enumerate(names, 1):
        print(f"{number} of {len(names)}: {name}", file=sys.stderr, flush=True)
        found[name] = compile_row(ROWS[name][1], args.out / f"{name}.json")
        atomic_write(args.out / "steps.md", table(found))
    print(table(found), end="")


if __name__ == "__main__":
    run_main(main)
