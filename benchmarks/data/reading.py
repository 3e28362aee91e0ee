"""Records a second that one core reads, decodes and encodes to training arrays, in each format.

    python -m benchmarks.data.reading
    python -m benchmarks.data.reading --records 1000 --json reading.json --dir /tmp/reading

Records are pictures of our own make, JPEG 640 x 480, to draw by a prompt (in llava: with a question)
at 384 pixels; or 576 codes; in the order of a training ("shuffled") and in that of the files. Files are in the
page cache: decoding is measured, not the disk. The process keeps to
one core; tokens are those of a word tokenizer. "needed" is what one H200 takes at an MFU of 45 %: 84 records a
second of 1B, 18 of 7B.

On a machine with other work the seconds that this process computed (CPU) say more than those on the clock (wall);
the load is printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.data.files import WRITERS, photo
from janus_jax.data import Rejected, SequenceEncoder
from janus_jax.data.formats import FileSource
from janus_jax.data.order import order_of
from janus_jax.emoji.tokenizer import word_tokenizer
from janus_jax.processing import Processor, ProcessorConfig

NEEDED = {"1B": 84, "7B": 18}  # records a second of one H200 at 45 % MFU


def encoder(codes: bool) -> SequenceEncoder:
    """As the paper's models have it: 384 pixels, 576 positions a picture."""
    return SequenceEncoder(Processor(ProcessorConfig(), word_tokenizer()), codes=codes)


def rate(source: FileSource, encode: SequenceEncoder, order: np.ndarray) -> dict[str, float]:
    """Records a second, by the clock and by the time that this process computed, in an order."""
    rng = np.random.default_rng(0)
    wall, cpu = time.perf_counter(), time.process_time()
    for index in order:
        found = encode(source[int(index)], rng)
        if isinstance(found, Rejected):
            raise RuntimeError(f"record {index}: {found}")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": len(order) / wall, "cpu": len(order) / cpu}


def measure(name: str, place: Path, photos: list[bytes]) -> dict[str, Any]:
    """Writes the records in a format and reads them in training's order and one after the other."""
    place.mkdir()
    arguments = {"task": "gen"} | WRITERS[name](place, photos)
    encode = encoder(name.startswith("codes"))
    source = FileSource(**arguments)
    count = len(source)
    rate(source, encode, np.arange(min(count, 20)))  # what is imported and opened at the first one
    order = order_of(source, seed=0)
    return {
        "format": name,
        "shuffled": rate(source, encode, np.array([order(i) for i in range(count)])),
        "sequential": rate(source, encode, np.arange(count)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--formats", nargs="*", default=list(WRITERS), choices=list(WRITERS))
    parser.add_argument("--dir", type=Path, help="where files are written, and removed afterwards")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if args.dir:
        args.dir.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        photos = [photo(i) for i in tqdm(range(args.records), "pictures", leave=False)]
        for number, name in enumerate(tqdm(args.formats, "formats", leave=False)):
            found.append(measure(name, Path(scratch) / f"format {number}", photos))
    result = {
        "records": args.records,
        "picture_bytes": float(np.mean([len(data) for data in photos])),
        "load": os.getloadavg()[0],
        "needed": NEEDED,
        "formats": found,
    }
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def table(result: dict[str, Any]) -> str:
    """Records a second of one core; then how many cores feed one H200 with 1B."""
    lines = [
        f"{result['records']} records of {result['picture_bytes'] / 1000:.0f} KB, one core, load "
        f"{result['load']:.1f}; needed by an H200: "
        + ", ".join(f"{count}/s ({size})" for size, count in result["needed"].items()),
        "",
        "| format | shuffled, CPU | wall | sequential, CPU | wall | cores for 1B |",
        "|---|---|---|---|---|---|",
    ]
    for each in result["formats"]:
        numbers = [each[order][clock] for order in ("shuffled", "sequential") for clock in _CLOCKS]
        cores = result["needed"]["1B"] / each["shuffled"]["cpu"]
        shown = " | ".join(f"{n:.0f}" for n in numbers)
        lines.append(f"| {each['format']} | {shown} | {cores:.2f} |")
    return "\n".join(lines)


_CLOCKS = ("cpu", "wall")

if __name__ == "__main__":
    main()
