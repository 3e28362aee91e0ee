"""How long it takes until a record of a large file can be read, the first time and later, and in what memory.

    python -m benchmarks.data.starting
    python -m benchmarks.data.starting --members 10000 --lines 1000000 --json starting.json

Where records lie is found at the first start and kept in the user's cache (here one of its own, that is removed).
Each start is a process of its own; its imports are not counted. Of memory, "index" is what the process has more of
once the source is open, without what the libraries need that are imported first; "shared" of that is mapped from
the cache, so that all processes of a machine have it once.

A tar file of 10,000 members, a picture and a caption for each of 5,000 samples, and 1,000,000 lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.data.files import PROMPT, photo, write_tar
from benchmarks.paths import ROOT

_START = """
import json, sys, time
from pathlib import Path
import numpy as np, PIL.Image
from janus_jax.data.formats import FileSource
from janus_jax.data.containers import json_lines, tar

def memory():
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return {name: int(sizes.get(name, 0)) / 1024 for name in ("RssAnon", "RssFile", "VmHWM")}

before, began, cpu = memory(), time.perf_counter(), time.process_time()
source = FileSource(**json.loads(sys.argv[1]))
count = len(source)
example = source[count // 2]
seconds, cpu, after = time.perf_counter() - began, time.process_time() - cpu, memory()
assert hasattr(example, "prompt") or hasattr(example, "text"), example
grown = {name: after[name] - before[name] for name in after}
print(json.dumps({
    "records": count, "seconds": seconds, "cpu": cpu, "index_mib": grown["RssAnon"] + grown["RssFile"],
    "shared_mib": grown["RssFile"], "peak_mib": grown["VmHWM"],
}))
"""


def start(arguments: dict[str, Any], cache: Path) -> dict[str, float]:
    """Opens a source in a process of its own and reads one record."""
    done = subprocess.run(
        [sys.executable, "-c", _START, json.dumps(arguments)],
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def write_lines(path: Path, count: int) -> None:
    with path.open("w") as file:
        for i in tqdm(range(count), "lines", leave=False):
            file.write(json.dumps({"id": i, "text": f"{PROMPT}, number {i}. " * 3}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=10_000, help="of the tar file")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the JSONL file")
    parser.add_argument("--dir", type=Path, help="where files are written, and removed afterwards")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    if args.dir:
        args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        place, photos = Path(scratch), [photo(i) for i in range(16)]
        members = (
            (f"{i:06}.{suffix}", data)
            for i in range(args.members // 2)
            for suffix, data in (("jpg", photos[i % 16]), ("txt", PROMPT.encode()))
        )
        write_tar(place / "r.tar", members)
        write_lines(place / "r.jsonl", args.lines)
        sources = {
            f"tar, {args.members} members": dict(task="gen", format="webdataset", path="r.tar"),
            f"JSONL, {args.lines} lines": dict(task="text", format="jsonl", path="r.jsonl"),
        }
        found = []
        for name, arguments in sources.items():
            file = place / arguments["path"]
            for which in ("first", "second", "third"):
                started = start(arguments | {"path": str(file)}, place / "cache")
                size = file.stat().st_size / 1e6
                found.append({"file": name, "megabytes": size, "start": which, **started})
    result = {"load": os.getloadavg()[0], "starts": found}
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def table(result: dict[str, Any]) -> str:
    lines = [
        f"load {result['load']:.1f}",
        "",
        "| file | MB | start | s, wall | s, CPU | index, MiB | of it shared | peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in result["starts"]:
        numbers = [f"{each[name]:.3f}" for name in ("seconds", "cpu")]
        numbers += [f"{each[name]:.1f}" for name in ("index_mib", "shared_mib", "peak_mib")]
        shown = " | ".join(numbers)
        lines.append(f"| {each['file']} | {each['megabytes']:.0f} | {each['start']} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
