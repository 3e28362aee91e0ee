"""Looks at what a training run would read, before it trains.

  python -m janus_jax.data inspect --manifest data.yaml --config configs/janus_tiny.py --out look
  python -m janus_jax.data inspect --manifest data.yaml --config configs/janus_pro_1b.py:stage3 \\
      --config.tokenizer=models/janus-pro-1b/tokenizer.json --out look --limit 2000

Every record is laid out as a run of this config would do it. --out gets index.html (a page to look at),
inspect.json (all numbers) and rejected.jsonl (every record that is left out, and why). --config and
--config.FIELD=VALUE are those of training; --manifest X is --config.data.manifest=X. No weights are loaded.

Exit code 1: a run would stop, as too much of a source is bad or too long. 2: it would not start.
"""

from __future__ import annotations

import argparse
import os
import sys

from janus_jax.cli import config_flag
from janus_jax.cli.parser import Parser
from janus_jax.console import printable
from janus_jax.errors import RunError, UserError, nearest

_MOST_SAMPLES = 500


def parse_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(flags, those of the config); raises UserError for what can be seen to be wrong without the data."""
    parser = Parser(__doc__, "inspect")
    add = parser.add_argument
    add("--manifest", metavar="FILE", help="the sources; by default those of the config")
    add(
        "--config",
        metavar="NAME|FILE[:STAGE]",
        default=config_flag.DEFAULT,
        help="of the run; default: %(default)s",
    )
    add("--out", metavar="DIR", help="where the three files go")
    add("--stage", default="", help="of the config; by default its last one of packed rows")
    add("--limit", type=int, default=0, metavar="N", help="records of each source, spread evenly")
    add("--samples", type=int, default=12, metavar="N", help="of each source; default: %(default)s")
    add("--checkpoint", metavar="DIR", default="", help="a model: its tokenizer, pictures of codes")
    add("--quiet", action="store_true", help="no progress bars")
    flags, rest = parser.parse_known_args(argv)
    for argument in rest:
        if argument.startswith("--") and not argument.startswith("--config."):
            name = argument.split("=")[0]
            parser.error(f"there is no flag {name}.{nearest(name, parser._option_string_actions)}")
    if not flags.out:
        raise UserError("nowhere to write: give --out, a directory for the page")
    if flags.limit < 0:
        raise UserError(f"--limit must be at least 1 record, not {flags.limit}")
    if not 0 <= flags.samples <= _MOST_SAMPLES:
        raise UserError(f"--samples must be from 0 to {_MOST_SAMPLES}, not {flags.samples}")
    return flags, [f"--config={flags.config}", *rest]


def main(argv: list[str]) -> None:
    """Inspects, prints the summary, and ends with what stands in the way of a run."""
    flags, of_config = parse_flags(argv)
    # Only looking: a device may be busy with a run. To be set before JAX is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    config = config_flag.parse([sys.argv[0], *of_config])
    if flags.manifest:
        config.data.manifest = flags.manifest
    from janus_jax.data_tools.inspection import PAGE, inspect, summary

    found = inspect(
        config,
        flags.out,
        stage=flags.stage,
        limit=flags.limit,
        count=flags.samples,
        checkpoint=flags.checkpoint,
        quiet=flags.quiet,
    )
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in summary(found, color):
        print(line)
    print(printable(f"page: {os.path.join(flags.out, PAGE)}"))
    if found.problems:
        worst, *more = found.problems
        others = f" (and {len(more)} more: see the page)" if more else ""
        raise (UserError if worst.code == 2 else RunError)(worst.text + others)
