"""Shows runs side by side, and beside the paper's numbers.

  python -m janus_jax.evaluation table results/janus-pro-1b results/mine
  python -m janus_jax.evaluation table results/mine --markdown

Each directory is the --out of `... run` or `... score`. A number that is of a part of a benchmark, of another
judge or another protocol has that in its name, and a row of its own, without the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from janus_jax.cli.parser import Parser


def main(argv: Sequence[str]) -> None:
    parser = Parser(__doc__, "table")
    parser.add_argument("directories", nargs="+", metavar="DIR", help="with a scores.json")
    parser.add_argument("--markdown", action="store_true", help="as a table of Markdown")
    flags = parser.parse_args(argv)
    from janus_jax.evaluation.number_tables import as_markdown, as_text, read_scores, runs_grid

    short = [Path(directory).name or directory for directory in flags.directories]
    names = flags.directories if len(set(short)) < len(short) else short
    runs = {
        name: read_scores(directory)["numbers"]
        for name, directory in zip(names, flags.directories, strict=True)
    }
    grid = runs_grid(runs)
    print(as_markdown(grid) if flags.markdown else as_text(grid))
