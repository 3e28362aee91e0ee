"""Prepares the sources of a manifest once for many runs: pictures of the model's size, or their codes.

  python -m janus_jax.data prepare --manifest data.yaml --checkpoint models/janus-pro-1b --out prepared
  python train.py --config configs/janus_pro_1b.py:stage3 --config.data.manifest=prepared/manifest.yaml ...

Pictures to draw become codes of the checkpoint's image tokenizer, which the step then need not compute;
with --no-codes they stay pictures, and no weights are read. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from janus_jax.cli.parser import Parser
from janus_jax.errors import UserError
from janus_jax.gcs import is_gcs


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the flags; raises UserError for what can be seen to be wrong without the data."""
    parser = Parser(__doc__, "prepare")
    add = parser.add_argument
    add("--manifest", metavar="FILE", required=True, help="the sources, a YAML file (docs/data.md)")
    add("--checkpoint", metavar="DIR|ID", required=True, help="the model: a directory, or a hub id")
    add("--out", metavar="DIR", required=True, help="what is made: a directory for each source")
    add(
        "--codes",
        action=argparse.BooleanOptionalAction,
        help="pictures to draw become codes (default), or stay pictures",
    )
    add(
        "--batch",
        type=int,
        default=16,
        metavar="N",
        help="pictures that a device encodes at a time (default: %(default)s)",
    )
    add(
        "--shard_records",
        type=int,
        default=1000,
        metavar="N",
        help="records of a file (default: %(default)s)",
    )
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add(
        "--threads",
        type=int,
        default=threads or 1,
        metavar="N",
        help="that read and resize (default: one for each core)",
    )
    add("--source", nargs="+", action="extend", metavar="NAME", help="only these sources")
    add("--limit", type=int, metavar="N", help="only the first records of each source")
    add(
        "--max_rejected",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of a source that may be left out (default: %(default)s)",
    )
    add("--quiet", action="store_true", help="no progress bar")
    flags = parser.parse_args(argv)
    for name in ("batch", "shard_records", "threads", "limit"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    if not 0 <= flags.max_rejected <= 1 or math.isnan(flags.max_rejected):
        raise UserError(f"--max_rejected must be a share from 0 to 1, not {flags.max_rejected}")
    for name in ("manifest", "checkpoint", "out"):
        if not getattr(flags, name):
            raise UserError(f"--{name} is empty")
    if is_gcs(flags.out):
        raise UserError(f"--out {flags.out}: give a directory; copy what is made to the bucket")
    return flags


def main(argv: Sequence[str]) -> None:
    """Runs the command with its flags."""
    flags = parse_flags(argv)
    # After the flags, so that --help and bad flags answer at once.
    from janus_jax.data_tools.preparation import Options, prepare

    prepare(
        Options(
            manifest=Path(flags.manifest),
            checkpoint=flags.checkpoint,
            out=Path(flags.out),
            codes=flags.codes,
            batch=flags.batch,
            shard_records=flags.shard_records,
            threads=flags.threads,
            only=tuple(flags.source or ()),
            limit=flags.limit or 0,
            max_rejected=flags.max_rejected,
            quiet=flags.quiet,
        )
    )
