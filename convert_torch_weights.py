"""Converts Janus checkpoints between PyTorch and this project, and checks that nothing changed.

  python convert_torch_weights.py --src deepseek-ai/Janus-Pro-1B --dst models/janus-pro-1b
  python convert_torch_weights.py --src runs/my_run --to hf --dst my_model_for_transformers
  python convert_torch_weights.py --src DIR --parity expected.npz

--src is a directory or a hub id, in the official format, in that of transformers, or in ours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from janus_jax.errors import UserError, run_main


class Parser(argparse.ArgumentParser):
    """Reports a bad flag as one line."""

    def error(self, message: str):
        raise UserError(f"{message} (see convert_torch_weights.py --help)")


def parse_flags() -> argparse.Namespace:
    """Reads the flags; raises UserError for what can be seen to be wrong without the model."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--src", metavar="DIR|ID", help="the model: a directory, or a hub id")
    add("--dst", metavar="DIR", help="the new directory")
    add("--to", choices=("janus_jax", "official", "hf"), default="janus_jax", help="its format")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json to use instead of the one in --src")
    flags = parser.parse_args()
    if not flags.src:
        raise UserError("nothing to convert: give --src, a directory or a hub id")
    if not flags.dst:
        raise UserError("nothing to do: give --dst, where the converted model goes")
    return flags


def main() -> None:
    flags = parse_flags()
    # After the flags, so that --help and bad flags answer at once.
    from janus_jax.weights.hub import local_directory
    from janus_jax.weights.names import TABLES
    from janus_jax.weights.source import open_source
    from janus_jax.weights.write import summary, write_ours, write_torch

    source = open_source(local_directory(flags.src), name=Path(flags.src).name.lower())
    processor, tokenizer = source.processor(Path(flags.tokenizer) if flags.tokenizer else None)
    rows = summary(source.arrays)
    with tqdm(
        total=rows[-1][2], unit="B", unit_scale=True, desc=f"{source.format} -> {flags.to}"
    ) as bar:
        if flags.to == "janus_jax":
            write_ours(source, Path(flags.dst), processor, tokenizer, bar.update)
        else:
            table = TABLES[flags.to]
            write_torch(source, Path(flags.dst), table, processor, tokenizer, bar.update)
    print(f"{'':16}{'parameters':>16}{'bytes':>18}")
    for name, parameters, nbytes in rows:
        print(f"{name:16}{parameters:16,}{nbytes:18,}")
    print(f"{flags.src} ({source.format}) is now in {flags.dst} ({flags.to})")


if __name__ == "__main__":
    run_main(main)
