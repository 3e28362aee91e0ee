"""Peak memory and time of one conversion, or of loading a model.

python -m benchmarks.conversion.random_checkpoint --model janus-pro-7b --bin --out /tmp/random_7b
python -m benchmarks.conversion.memory --src /tmp/random_7b --dst /tmp/converted
python -m benchmarks.conversion.memory --src /tmp/random_7b --load --int8 weights --dtype bfloat16

Converting may take 1.25 x the largest file + 2 GiB. Loading may hold the weights, which on a CPU are in the same
memory as the host's, and beside them what Python and JAX took before, one table as it is quantized, and 1 GiB.

Linux only: reads /proc. "resident" counts mapped pages of the input as well, which the system takes back when it
needs them; "anonymous" is what the process really holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.paths import ROOT
from janus_jax.errors import UserError, run_main

GIB = 2**30


def status(pid: int | str) -> dict[str, int]:
    """Fields of /proc/PID/status in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


# Loads a model and says what is on the device, and what the process held before and holds after.
_LOAD = """
import json, sys
import jax
from benchmarks.conversion.memory import status
from janus_jax import Janus

src, dtype, int8 = sys.argv[1:]
jax.block_until_ready(jax.numpy.zeros(3) + 1)
before = status("self")["RssAnon"]
janus = Janus.load(src, dtype=dtype, int8=[part for part in int8.split(",") if part])
weights = jax.tree.leaves(janus.weights)
after = status("self")["RssAnon"]
facts = {"model": repr(janus), "before": before, "after": after}
facts |= {"weights": sum(x.nbytes for x in weights), "largest": max(x.size for x in weights)}
print(json.dumps(facts))
"""


def peaks(command: list[str], **options: Any) -> tuple[subprocess.Popen, dict[str, float]]:
    """Runs a command: (the process, its peaks in GiB and its seconds)."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, **options)
    resident = anonymous = 0
    while process.poll() is None:
        now = status(process.pid)
        resident = max(resident, now.get("VmRSS", 0))
        anonymous = max(anonymous, now.get("RssAnon", 0))
        time.sleep(0.05)
    return process, {
        "peak_resident_gib": resident / GIB,
        "peak_anonymous_gib": anonymous / GIB,
        "seconds": time.perf_counter() - began,
    }


def load(src: Path, dtype: str, int8: str) -> dict[str, Any]:
    """What loading takes, in GiB."""
    command = [sys.executable, "-c", _LOAD, str(src.absolute()), dtype, int8]
    process, peak = peaks(command, stdout=subprocess.PIPE, text=True)
    result = {"exit_code": process.returncode, **peak}
    if process.returncode:
        return result
    facts = json.loads(process.stdout.read())
    # A table is quantized in float32, several times over.
    limit = facts["weights"] + facts["before"] + 16 * facts["largest"] + GIB
    beside = peak["peak_anonymous_gib"] - (facts["weights"] + facts["before"]) / GIB
    return result | {
        "model": facts["model"],
        "weights_gib": facts["weights"] / GIB,
        "anonymous_before_gib": facts["before"] / GIB,
        "anonymous_after_gib": facts["after"] / GIB,
        "peak_beside_weights_gib": beside,
        "limit_gib": limit / GIB,
        "within": peak["peak_anonymous_gib"] <= limit / GIB,
    }


def convert(src: Path, dst: Path, to: str) -> dict[str, Any]:
    """What converting takes, in GiB."""
    command = [sys.executable, ROOT / "convert_torch_weights.py"]
    command += ["--src", src.absolute(), "--dst", dst.absolute(), "--to", to]
    process, peak = peaks([*map(str, command)])
    limit = 1.25 * max(file_sizes(src)) / GIB + 2
    within = peak["peak_resident_gib"] <= limit
    return {"exit_code": process.returncode, "limit_gib": limit, "within": within, **peak}


def file_sizes(src: Path) -> list[int]:
    """Bytes of the weight files of a directory in a format of PyTorch; of ours, of all files."""
    files = [p for p in src.rglob("*") if p.is_file()]
    weights = [p for p in files if p.suffix in (".bin", ".safetensors")]
    return [p.stat().st_size for p in weights or files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--src", type=Path, required=True)
    parser.add_argument("--dst", type=Path, help="convert, to this place")
    parser.add_argument("--to", default="janus_jax")
    parser.add_argument("--load", action="store_true", help="load instead")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--int8", default="", help="as of Janus.load, comma-separated")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.load == bool(args.dst):
        raise UserError("give either --load, or --dst to convert")
    sizes = file_sizes(args.src)
    result = {"command": f"python -m benchmarks.conversion.memory {' '.join(sys.argv[1:])}"}
    result |= {"input_gib": sum(sizes) / GIB, "largest_file_gib": max(sizes) / GIB}
    if args.load:
        result |= load(args.src, args.dtype, args.int8)
    else:
        result |= convert(args.src, args.dst, args.to)
    result = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(result["exit_code"] or int(not result["within"]))


if __name__ == "__main__":
    run_main(main)
