"""What the commands share: the parser of flags, and texts that name the command as it was typed."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from janus_jax.errors import UserError, nearest
from janus_jax.untrusted import shown

# Script at the root of the source tree, or module -> the command that an installation has instead.
COMMANDS = {
    "train.py": "janus-train",
    "sample.py": "janus-sample",
    "convert_torch_weights.py": "janus-convert",
    "-m janus_jax.data": "janus-data",
    "-m janus_jax.evaluation": "janus-evaluate",
    "-m janus_jax.serving": "janus-serve",
}


class Parser(argparse.ArgumentParser):
    """Shows the module's docstring as help, and reports a bad flag as one line.

    Args:
      description: the docstring.
      word: the first word after the command, where it has several.

    Raises:
      UserError: instead of printing the usage, from `parse_args`.
    """

    def __init__(self, description: str | None, word: str = ""):
        super().__init__(
            prog=" ".join([program(), word]).strip(),
            description=description and as_typed(description),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        raise UserError(f"{message} (see {program()} --help)")


def run_command(description: str | None, commands: Mapping[str, str]) -> None:
    """Runs what the first word of the command line names, with the rest of it.

    Args:
      description: the docstring of the command, which is its help.
      commands: word -> "module:function" of a list of flags; only what is named is imported.

    Raises:
      UserError: no such word.
    """
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("--help", "-h"):
        Parser(description).parse_args(["--help"])
    if word not in commands:
        words = ", ".join(commands)
        raise UserError(f"no command {word[:100]!r} ({words}).{nearest(word[:100], commands)}")
    module, _, function = commands[word].partition(":")
    getattr(importlib.import_module(module), function)(sys.argv[2:])


def step_of_run(text: str) -> int | str:
    """The value of a flag --step: a number, or "best"."""
    if text != "best" and not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"must be the number of a step or best, not {shown(text)}")
    return text if text == "best" else int(text)


def program() -> str:
    """How the running program is started: "python train.py", or "janus-train" of an installation."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return f"python -m janus_jax.{Path(sys.argv[0]).parent.name}"
    return f"python {name}" if name.endswith(".py") else name


def as_typed(text: str) -> str:
    """A text about the scripts; where a command of an installation runs, it names those commands."""
    if Path(sys.argv[0]).name not in COMMANDS.values():
        return text
    for script, command in COMMANDS.items():
        text = re.sub(rf"(python )?(?<!\w){re.escape(script)}", command, text)
    return text
