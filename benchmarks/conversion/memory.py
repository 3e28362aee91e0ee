"""Peak memory and time of one conversion, against the limit 1.25 x the largest file + 2 GiB.

python -m benchmarks.conversion.random_checkpoint --model janus-pro-7b --bin --out /tmp/random_7b
python -m benchmarks.conversion.memory --src /tmp/random_7b --dst /tmp/converted

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

from benchmarks.paths import ROOT

GIB = 2**30


def status(pid: int) -> dict[str, int]:
    """Fields of /proc/PID/status in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--src", type=Path, required=True)
    parser.add_argument("--dst", type=Path, required=True)
    parser.add_argument("--to", default="janus_jax")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    files = [p.stat().st_size for p in args.src.iterdir() if p.suffix in (".bin", ".safetensors")]
    command = [sys.executable, ROOT / "convert_torch_weights.py"]
    command += ["--src", args.src, "--dst", args.dst, "--to", args.to]
    began = time.perf_counter()
    process = subprocess.Popen([*map(str, command)])
    resident = anonymous = 0
    while process.poll() is None:
        now = status(process.pid)
        resident = max(resident, now.get("VmRSS", 0))
        anonymous = max(anonymous, now.get("RssAnon", 0))
        time.sleep(0.02)
    result = {
        "command": " ".join(map(str, command[1:])),
        "exit_code": process.returncode,
        "input_gib": sum(files) / GIB,
        "largest_file_gib": max(files) / GIB,
        "limit_gib": 1.25 * max(files) / GIB + 2,
        "peak_resident_gib": resident / GIB,
        "peak_anonymous_gib": anonymous / GIB,
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(process.returncode or int(resident > result["limit_gib"] * GIB))


if __name__ == "__main__":
    main()
