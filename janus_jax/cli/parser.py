"""What the entry points share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from janus_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """Shows the module's docstring as help, and reports a bad flag as one line.

    Raises:
      UserError: instead of printing the usage, from `parse_args`.
    """

    def __init__(self, description: str | None):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        raise UserError(f"{message} (see {Path(sys.argv[0]).name} --help)")
