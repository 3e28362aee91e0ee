"""Converts Janus checkpoints between PyTorch and this project, and checks that nothing changed.

  python convert_torch_weights.py --src deepseek-ai/Janus-Pro-1B --dst models/janus-pro-1b
  python convert_torch_weights.py --src runs/my_run --to hf --dst my_model_for_transformers
  python convert_torch_weights.py --src deepseek-ai/Janus-Pro-1B --adapter DIR --to hf --dst merged
  python convert_torch_weights.py --src runs/my_run --to peft --dst my_adapter
  python convert_torch_weights.py --src DIR --parity expected.npz
  python convert_torch_weights.py --src DIR --record expected.npz

--src is a directory or a hub id, in the official format, in that of transformers, or a native one. --record lets
PyTorch compute on this machine what --parity compares on another. --adapter adds a LoRA adapter in the layout
of PEFT to the weights; --to peft writes the one that a training run has trained, with the names of transformers
(peft-official: with those of deepseek-ai/Janus). Exit code 1: --parity found a difference.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from janus_jax import gcs
from janus_jax.cli.parser import Parser, step_of_run
from janus_jax.console import printable
from janus_jax.errors import RunError, UserError, run_main
from janus_jax.files import read_json, write_json
from janus_jax.places import check_file
from janus_jax.untrusted import is_file

# Formats of adapters -> whose names the modules have.
ADAPTER_FORMATS = {"peft": "hf", "peft-official": "official"}


def parse_flags() -> argparse.Namespace:
    """Reads the flags; raises UserError for what can be seen to be wrong without the model."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--src", metavar="DIR|ID", help="the model: a directory, or a hub id")
    add("--dst", metavar="DIR", help="the new directory")
    add(
        "--to",
        choices=("janus_jax", "official", "hf", *ADAPTER_FORMATS),
        default="janus_jax",
        help="its format; peft: the adapter of a run alone",
    )
    add("--adapter", metavar="DIR|ID", help="a LoRA adapter to add to the weights")
    add(
        "--step",
        type=step_of_run,
        metavar="N|best",
        help="of --to peft; best: with the lowest held-out loss; default: the newest with an adapter",
    )
    add("--tokenizer", metavar="FILE", help="a tokenizer.json to use instead of the one in --src")
    add("--parity", metavar="FILE", help="compute again what this .npz recorded, and compare")
    add(
        "--record",
        metavar="FILE",
        help="record a .npz with PyTorch (official package or transformers)",
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of --parity")
    add(
        "--tolerance", type=float, default=1e-4, help="of --parity in float32; default: %(default)s"
    )
    add("--json", metavar="FILE", help="writes the result of --parity as JSON, too")
    flags = parser.parse_args()
    if not flags.src:
        raise UserError("nothing to convert: give --src, a directory or a hub id")
    if not (flags.dst or flags.parity or flags.record):
        raise UserError("nothing to do: give --dst, --parity or --record")
    if flags.to in ADAPTER_FORMATS and (
        flags.adapter or flags.parity or flags.record or flags.tokenizer
    ):
        raise UserError(
            f"--to {flags.to} writes the adapter of a run: it goes without --adapter, --parity, --record and "
            "--tokenizer"
        )
    if flags.step is not None and flags.to not in ADAPTER_FORMATS:
        raise UserError("--step goes with --to peft; of a run, the newest step is converted")
    if flags.adapter and flags.record:
        raise UserError(
            "--record computes with the weights in --src, without --adapter: convert them together first"
        )
    if flags.json and not flags.parity:
        raise UserError("--json holds the result of --parity: give both")
    for name in ("record", "json"):  # before anything is computed for a long time
        if path := getattr(flags, name):
            check_file(path, f"--{name}")
    if flags.tokenizer and not is_file(flags.tokenizer):
        raise UserError(f"--tokenizer {flags.tokenizer}: there is no such file")
    if not 0 < flags.tolerance < math.inf:
        raise UserError(f"--tolerance must be a positive number, not {flags.tolerance}")
    return flags


def convert(source, flags: argparse.Namespace) -> None:
    """Writes the model to --dst and prints what is in it."""
    from janus_jax.interop.conversion import summary, write_model

    processor, tokenizer = source.processor(Path(flags.tokenizer) if flags.tokenizer else None)
    rows, label = summary(source.arrays), f"{source.format} -> {flags.to}"
    with tqdm(total=rows[-1][2], unit="B", unit_scale=True, desc=label) as bar:
        write_model(source, Path(flags.dst), flags.to, processor, tokenizer, bar.update)
    print(f"{'':16}{'parameters':>16}{'bytes':>18}")
    for name, parameters, nbytes in rows:
        print(f"{name:16}{parameters:16,}{nbytes:18,}")
    added = f" with the adapter {flags.adapter}" if flags.adapter else ""
    print(printable(f"{flags.src} ({source.format}){added} is now in {flags.dst} ({flags.to})"))
    _warn_of_rounding(flags.src)


def _warn_of_rounding(src: str) -> None:
    """One line for a run that has trained an adapter over int8 weights, which its checkpoints keep."""
    path = gcs.absolute(src) / "config.json"
    try:
        config = read_json(path, dict) if is_file(path) else {}
        rounded = config.get("policy", {}).get("frozen_dtype") == "int8"
    except (UserError, AttributeError):
        return
    if rounded and config.get("init_from"):
        print(
            printable(
                f"warning: {src} was trained over int8 weights, so what was written has them rounded; the model "
                f"as it was, with the adapter: --src {config['init_from']} --adapter {src}/adapter/STAGE",
                1000,
            ),
            file=sys.stderr,
        )


def convert_adapter(flags: argparse.Namespace) -> None:
    """Writes the adapter of a run to --dst and prints what is in it."""
    from janus_jax.interop import TABLES
    from janus_jax.interop.adapters import (
        check_adapter_destination,
        trained_adapter,
        write_adapter,
    )

    check_adapter_destination(flags.src, flags.dst)
    found = trained_adapter(flags.src, flags.step)
    table = TABLES[ADAPTER_FORMATS[flags.to]]
    written = write_adapter(found.params, found.config, flags.dst, found.base, table)
    print(
        printable(
            f"the adapter of {found.stage}, step {found.step} of {flags.src} is now in {flags.dst}: "
            f"{written['modules']} modules, {written['parameters']:,} parameters, {written['bytes']:,} bytes"
        )
    )
    if found.base:
        print(printable(f"it belongs on {found.base}", 1000))
    else:
        print("it belongs on the random numbers that the run began with (it had no init_from)")


class PartProgress:
    """Shows on a bar which part of --parity runs and how far all are; keeps the seconds of each."""

    def __init__(self, bar: tqdm):
        self._bar, self._part, self._since = bar, None, time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if self._part:
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._since
        self._since = now
        if done < self._bar.n or total != self._bar.total:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)
        if part != self._part:
            self._part = part
            self._bar.set_description(part)


def compare(source, recorded, flags: argparse.Namespace) -> None:
    """Prints the table of --parity with what was `recorded`; raises RunError if a key is beyond tolerance."""
    from janus_jax.interop.parity import as_json, check_parity

    with tqdm(unit="step", dynamic_ncols=True) as bar:
        parts = PartProgress(bar)
        rows = check_parity(source, recorded, flags.dtype, flags.tolerance, parts)
    failed = [r.key for r in rows if r.ok is False]
    if flags.json:
        write_json(flags.json, as_json(rows, flags.dtype, flags.tolerance, parts.seconds))
    number = lambda value: "" if value is None else f"{value:.3g}"
    verdict = {True: "ok", False: "FAIL", None: "-"}
    print(f"{'':22}{'max abs':>10}{'max rel':>10}{'match':>8}{'KL':>10}{'top-1':>7}  verdict")
    for r in rows:
        cells = f"{number(r.max_abs):>10}{number(r.max_rel):>10}{number(r.match):>8}"
        cells += f"{number(r.kl):>10}{number(r.top1):>7}"
        print(printable(f"{r.key:22}{cells}  {verdict[r.ok]} {r.note}".rstrip()))
    if failed:
        raise RunError(f"beyond tolerance: {', '.join(failed)}")
    print(f"all {len(rows)} recorded keys agree ({flags.dtype})")


def same_path(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def main() -> None:
    flags = parse_flags()
    # After the flags, so that --help and bad flags answer at once.
    from janus_jax.interop.adapters import check_adapter, source_with_adapter
    from janus_jax.interop.conversion import (
        check_destination,
        local_directory,
        open_source,
        part_of_run,
    )
    from janus_jax.interop.parity import read_recording, write_recording

    if part := part_of_run(flags.src):
        raise UserError(
            f"--src {flags.src} is a part of the run {part[0]}; give --src {part[0]}, whose newest "
            "step is converted"
        )
    if flags.to in ADAPTER_FORMATS:
        convert_adapter(flags)
        return
    adapter = None
    if flags.adapter:
        adapter = local_directory(flags.adapter)
        check_adapter(adapter, flags.src)
    if flags.dst:
        check_destination(flags.src, flags.dst, flags.to)
    recorded = None
    if flags.parity and not (flags.record and same_path(flags.parity, flags.record)):
        recorded = read_recording(flags.parity)  # a bad one, too, is reported before the work
    directory = local_directory(flags.src)
    source = open_source(directory, name=Path(flags.src).name.lower())
    if adapter:
        source = source_with_adapter(source, adapter)
    if flags.record:
        by = write_recording(source, Path(flags.record))
        print(printable(f"recorded {flags.src} in {flags.record}, computed by {by}"))
    if flags.dst:
        convert(source, flags)
    if flags.parity:
        compare(source, read_recording(flags.parity) if recorded is None else recorded, flags)


def command() -> None:
    """Runs as a command: exit codes instead of exceptions."""
    run_main(main)


if __name__ == "__main__":
    command()
