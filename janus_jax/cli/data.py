"""Looks at the data of a run, and prepares it.

  python -m janus_jax.data inspect --manifest data.yaml --config configs/janus_tiny.py --out look
  python -m janus_jax.data prepare --manifest data.yaml --checkpoint models/janus-pro-1b --out prepared

inspect counts, measures and shows what a run would read, and lists every record that it would leave out.
prepare writes the examples once in a form that is fast to read: pictures resized, or as codes.
`... inspect --help` and `... prepare --help` say more.
"""

from __future__ import annotations

from janus_jax.cli.parser import run_command
from janus_jax.errors import run_main

_COMMANDS = {
    "inspect": "janus_jax.cli.data_inspect:main",
    "prepare": "janus_jax.cli.data_prepare:main",
}


def main() -> None:
    """Runs what the first word names; the rest are its flags."""
    run_command(__doc__, _COMMANDS)


def command() -> None:
    """Entry point of `janus-data` and of `python -m janus_jax.data`."""
    run_main(main)
