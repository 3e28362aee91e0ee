"""Trains a Janus: every stage of a config, in order, and goes on where it stopped.

    python train.py                                                  # the tiny model, on a laptop
    python train.py --config configs/janus_tiny.py --workdir runs/mine --config.seed=1
    python train.py --config configs/janus_pro_7b.py:stage2 --config.init_from=DIR --config.tokenizer=...

Everything is written under --workdir (default runs/<config name>); running the same command again
continues. Any field can be set: --config.stages.stage2.steps=100.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from janus_jax.errors import UserError, nearest, run_main
from janus_jax.signals import AGAIN, EXIT_CODES, StopSignals

DEFAULT_CONFIG = "configs/janus_tiny.py"
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything goes (default: runs/<config name>)."
)
_ALLOW = flags.DEFINE_list(
    "allow_change",
    [],
    "Fields that may differ from what the run in --workdir was begun with, though they change its "
    "result: from its last checkpoint on. Recorded in its changes.jsonl.",
)
_QUIET = flags.DEFINE_bool("quiet", False, "No progress bars.")


def main() -> None:
    with StopSignals() as signals:
        _main(signals)


def _main(signals: StopSignals) -> None:
    config = _parse(sys.argv)
    # Heavy imports after the flags: a typo should not cost seconds.
    from janus_jax.parallel import ending_together, initialize
    from janus_jax.run import train
    from janus_jax.training import Stopped

    logging.set_verbosity(logging.ERROR)
    joined = initialize()
    if joined:
        signals.hand_over()
    run_dir = Path(_WORKDIR.value or f"runs/{config.name}")
    allow = tuple(name.strip().removeprefix("config.") for name in _ALLOW.value)
    with ending_together() if joined else contextlib.nullcontext():
        try:
            train(config, run_dir, quiet=_QUIET.value, allow_change=allow, signals=signals)
        except Stopped as stopped:
            print(f"{stopped}; {AGAIN}", file=sys.stderr)
            sys.exit(EXIT_CODES[stopped.by])


def _parse(argv: list[str]):
    """The config, or a UserError that names the file or field."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag.lstrip("-").split("=")[0] == "config":
            _check_file(flag.split("=", 1)[1] if "=" in flag else value)
    try:
        # Defined here, because defining it already reads --config.FIELD from the command line.
        flag = config_flags.DEFINE_config_file("config", DEFAULT_CONFIG, "FILE or FILE:VARIANT.")
        rest = flags.FLAGS(argv)
        config = flag.value
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        if moved := _moved(argv):
            raise UserError(moved) from error
        # A mistake inside a config file arrives as a whole traceback; its last line says it all.
        lines = str(error).replace("\\n", "\n").strip().splitlines()
        reason = lines[-1] if "Traceback" in str(error) else " ".join(lines)
        raise UserError(f"{reason} (see python train.py --help)") from error
    if len(rest) > 1:
        raise UserError(f"what is {rest[1]!r}? All arguments are flags, see python train.py --help")
    return config


def _moved(argv: list[str]) -> str:
    """Where a field of an earlier version went that the command line sets, in one line; else ""."""
    from janus_jax.run.old_configs import where_it_went

    fields = (f.lstrip("-").split("=")[0] for f in argv if f.startswith(("--config.", "-config.")))
    found = (where_it_went(field.removeprefix("config.")) for field in fields)
    return next((line for line in found if line), "")


def _check_file(value: str) -> None:
    path = Path(value.split(":", 1)[0])
    if not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py") if p.name.startswith("janus_"))
        raise UserError(f"no config file {path}.{nearest(str(path), known)}")


def command() -> None:
    """Runs as a command: exit codes instead of exceptions."""
    app.usage = lambda **_: print(__doc__)
    if any(a in ("--help", "-h", "-help") for a in sys.argv[1:]):
        print(
            __doc__
            + "\nFlags: --config FILE[:VARIANT], --workdir DIR, --quiet, --config.FIELD=VALUE,\n"
            "       --allow_change=FIELD,... (of a run that has begun: go on with another value)"
        )
        sys.exit(0)
    run_main(main)


if __name__ == "__main__":
    command()
