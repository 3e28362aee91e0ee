"""The flag --config: a config by its name or its file, with fields set by --config.FIELD=VALUE."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from janus_jax.cli.parser import program
from janus_jax.configs.earlier import where_it_went
from janus_jax.errors import UserError, nearest, one_line

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DEFAULT = "janus_tiny"
BUILTIN = Path(__file__).resolve().parents[1] / "configs"
LOCAL = Path("configs")  # in the source tree, or of one's own


def parse(argv: list[str]) -> ConfigDict:
    """Parses the command line, all flags that are defined included.

    Args:
      argv: as `sys.argv`.

    Returns:
      The config that --config names, with the fields that were set.

    Raises:
      UserError: a flag is unknown, there is no such config, or a field has no such name or value.
    """
    try:
        argv = _with_files(argv)
        # Defined here, because defining it already reads --config.FIELD from the command line.
        flag = config_flags.DEFINE_config_file(
            "config", config_file(DEFAULT), "NAME or FILE, or either with :VARIANT."
        )
        rest = flags.FLAGS(argv)
        config = flag.value
    except Exception as error:
        if reason := _reason(error, argv):
            raise UserError(reason) from error
        raise
    if len(rest) > 1:
        raise UserError(f"what is {rest[1]!r}? All arguments are flags, see {program()} --help")
    return config


def config_file(value: str) -> str:
    """FILE or FILE:VARIANT for a value of --config, which may have the name of a built-in config instead.

    Raises:
      UserError: there is neither such a file nor such a name; the message suggests the nearest.
    """
    name, colon, variant = value.partition(":")
    path = Path(name)
    if not path.is_file():
        path = builtin().get(name, path)
    if not path.is_file():
        known = [*builtin(), *sorted(str(p) for p in LOCAL.glob("*.py"))]
        raise UserError(
            f"no config file {name}, nor a config of this name ({', '.join(builtin())})."
            f"{nearest(name, known)}"
        )
    return f"{path}{colon}{variant}"


def builtin() -> dict[str, Path]:
    """Name -> file of the configs that come with the package."""
    files = sorted(BUILTIN.glob("*.py"))
    return {p.stem: p for p in files if "def get_config(" in p.read_text(encoding="utf-8")}


def _reason(error: Exception, argv: list[str]) -> str:
    """What is wrong with the config or the flags, in one line; "" for a bug of this program."""
    for link in _chain(error):
        if isinstance(link, UserError) and "Traceback" not in str(link):
            return str(link)
        if place := _place(link, argv):
            return place
    missing = (LookupError, AttributeError)  # the second: in a dict that is nested
    if unknown := next((link for link in _chain(error) if isinstance(link, missing)), None):
        text = str(unknown.args[0]) if unknown.args else ""
        key = re.search(r"[\w.]+", text)
        key = "[" if isinstance(unknown, IndexError) else key[0] if key else text
        meant = re.search(r'Did you mean "([^"]+)"', text)
        for field in (a.lstrip("-").split("=")[0] for a in argv if "config." in a):
            if key in field:
                hint = f". Did you mean {meant[1]!r}?" if meant else ""
                return f"the config has no {field}: only what its file sets can be changed by a flag{hint}"
    if isinstance(
        error, flags.Error | AttributeError | LookupError | ValueError | TypeError | OSError
    ):
        # An error that is raised again has a whole traceback in its text; the last line says it all.
        lines = str(error).replace("\\n", "\n").strip().splitlines()
        reason = lines[-1] if "Traceback" in str(error) else " ".join(lines)
        return f"{reason} (see {program()} --help)"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(error: BaseException, argv: list[str]) -> str:
    """The line of a config file on the command line that raised `error`, with the error; else ""."""
    names = [argument.partition("=")[2] or argument for argument in argv]
    files = {name.partition(":")[0] for name in names if ".py" in name}
    if isinstance(error, SyntaxError) and error.filename in files:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            if isinstance(error, KeyError | AttributeError):
                for name, call in re.findall(r"\w\.([\w.]+)(\(?)", frame.line or ""):
                    if moved := where_it_went(name.rpartition(".")[0] if call else name):
                        return f"{frame.filename}, line {frame.lineno}: {moved}"
            return (
                f"{frame.filename}, line {frame.lineno}: {type(error).__name__}: {one_line(error)}"
            )
    return ""


def _with_files(argv: list[str]) -> list[str]:
    """The command line with the file of a config wherever it has a name."""
    argv = list(argv)
    names = [a.partition("=")[0] for a in argv]
    if names.count("--config") + names.count("-config") > 1:
        raise UserError(
            "--config is given twice: name one config, and set fields by --config.FIELD=VALUE"
        )
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if equals:
            argv[i] = f"{flag}={config_file(value)}"
        elif i + 1 < len(argv):
            argv[i + 1] = config_file(argv[i + 1])
    return argv
