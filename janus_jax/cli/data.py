"""Looks at the data of a run, and prepares it.

  python -m janus_jax.data inspect --manifest data.yaml --config configs/janus_tiny.py --out look
  python -m janus_jax.data prepare --manifest data.yaml --checkpoint models/janus-pro-1b --out prepared

inspect counts, measures and shows what a run would read, and lists every record that it would leave out.
prepare writes the examples once in a form that is fast to read: pictures resized, or as codes.
`... inspect --help` and `... prepare --help` say more.
"""

from __future__ import annotations

import importlib
import sys

from janus_jax.cli.parser import Parser
from janus_jax.errors import UserError, nearest, run_main

_COMMANDS = {
    "inspect": "janus_jax.cli.data_inspect",
    "prepare": "janus_jax.cli.data_prepare",
}


def main() -> None:
    """Runs what the first word names; the rest are its flags."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("--help", "-h"):
        Parser(__doc__).parse_args(["--help"])
    if word not in _COMMANDS:
        words = ", ".join(_COMMANDS)
        raise UserError(f"no command {word!r} ({words}).{nearest(word, _COMMANDS)}")
    importlib.import_module(_COMMANDS[word]).main(sys.argv[2:])


def command() -> None:
    """Entry point of `janus-data` and of `python -m janus_jax.data`."""
    run_main(main)
