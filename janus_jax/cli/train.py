"""Trains a Janus: every stage of a config, in order, and goes on where it stopped.

    python train.py                                                     # janus_tiny, on a laptop
    python train.py --config janus_tiny:smoke --workdir runs/mine --config.seed=1
    python train.py --config configs/janus_tiny.py                      # a config by its file
    python train.py --config janus_pro_7b:stage2 --config.init_from=DIR --config.tokenizer=...

Everything is written under --workdir (default runs/<config name>); running the same command again
continues. Any field can be set: --config.stages.stage2.steps=100.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from absl import app, flags, logging

from janus_jax.cli import config_flag
from janus_jax.cli.parser import as_typed
from janus_jax.errors import UserError, run_main
from janus_jax.places import check_local
from janus_jax.signals import AGAIN, EXIT_CODES, StopSignals

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
    check_local(_WORKDIR.value or "", "--workdir")
    check_local(config.init_from, "--config.init_from")
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
    try:
        return config_flag.parse(argv)
    except UserError as error:
        if moved := _moved(argv):
            raise UserError(moved) from error
        raise


def _moved(argv: list[str]) -> str:
    """Where a field of an earlier version went that the command line sets, in one line; else ""."""
    from janus_jax.configs.earlier import where_it_went

    fields = (f.lstrip("-").split("=")[0] for f in argv if f.startswith(("--config.", "-config.")))
    found = (where_it_went(field.removeprefix("config.")) for field in fields)
    return next((line for line in found if line), "")


def command() -> None:
    """Runs as a command: exit codes instead of exceptions."""
    text = as_typed(__doc__)
    app.usage = lambda **_: print(text)
    if any(a in ("--help", "-h", "-help") for a in sys.argv[1:]):
        print(
            f"{text}\nConfigs: {', '.join(config_flag.builtin())}, or a file\n"
            "Flags: --config NAME[:VARIANT], --workdir DIR, --quiet, --config.FIELD=VALUE,\n"
            "       --allow_change=FIELD,... (of a run that has begun: go on with another value)"
        )
        sys.exit(0)
    run_main(main)


if __name__ == "__main__":
    command()
