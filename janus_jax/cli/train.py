"""Trains a Janus: every stage of a config, in order, and goes on where it stopped.

    python train.py                                                     # janus_tiny, on a laptop
    python train.py --config janus_tiny:smoke --workdir runs/mine --config.seed=1
    python train.py --config configs/janus_tiny.py                      # a config by its file
    python train.py --config janus_pro_7b:stage2 --config.init_from=DIR --config.tokenizer=...
    python train.py --config janus_pro_7b:stage2 --aot v5e:16x16        # does it fit? without a TPU
    python train.py --config janus_small:stage2 --plan                  # what fits on this machine

Everything is written under --workdir (default runs/<config name>); running the same command again
continues. Any field can be set: --config.stages.stage2.steps=100.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags, logging

from janus_jax import gcs
from janus_jax.cli import config_flag
from janus_jax.cli.parser import as_typed
from janus_jax.errors import RunError, UserError, line_and_code, run_main
from janus_jax.places import checked
from janus_jax.signals import AGAIN, EXIT_CODES, StopSignals

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where everything goes, a directory or gs://bucket/run (default: runs/<config name>).",
)
_ALLOW = flags.DEFINE_list(
    "allow_change",
    [],
    "Fields that may differ from what the run in --workdir was begun with, though they change its "
    "result: from its last checkpoint on. Recorded in its changes.jsonl.",
)
_AOT = flags.DEFINE_string(
    "aot",
    "",
    "Compile the step for a TPU topology such as v5e:16x16, say what it needs, and stop. Needs libtpu, no TPU.",
)
_PLAN = flags.DEFINE_bool(
    "plan",
    False,
    "Say what a device holds and the largest batch that fits, of this machine or of --aot, and stop.",
)
_CODES = flags.DEFINE_bool(
    "codes", False, "With --aot or --plan: pictures to generate come as codes, not as pixels."
)
_OUT = flags.DEFINE_string("out", None, "With --aot or --plan: JSON with the same numbers.")
_QUIET = flags.DEFINE_bool("quiet", False, "No progress bars.")


def main() -> None:
    with StopSignals() as signals:
        _main(signals)


def _main(signals: StopSignals) -> None:
    config = _parse(sys.argv)
    ahead = flags.FLAGS["aot"].present or _PLAN.value
    if (_CODES.value or _OUT.value) and not ahead:
        raise UserError("--codes and --out belong to --aot or --plan; training takes --workdir")
    if ahead:
        if flags.FLAGS["aot"].present and not _AOT.value:
            raise UserError("--aot is empty: name a TPU and its shape, such as v5e:16x16")
        _look_ahead(config)
        return
    workdir = _WORKDIR.value or f"runs/{config.name}"
    checked(workdir, "--workdir")
    checked(config.init_from, "--config.init_from")
    # Heavy imports after the flags: a typo should not cost seconds.
    from janus_jax.parallel import ending_together, initialize
    from janus_jax.run import train
    from janus_jax.training import Stopped

    logging.set_verbosity(logging.ERROR)
    joined = initialize()
    if joined:
        signals.hand_over()
    allow = tuple(name.strip().removeprefix("config.") for name in _ALLOW.value)
    alone = _ending_at_once() if gcs.is_gcs(workdir) else contextlib.nullcontext()
    with ending_together() if joined else alone:
        try:
            train(config, workdir, quiet=_QUIET.value, allow_change=allow, signals=signals)
        except Stopped as stopped:
            print(f"{stopped}; {AGAIN}", file=sys.stderr)
            sys.exit(EXIT_CODES[stopped.by])


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """Around a run in a bucket: threads that write there would try for minutes, and tell of it."""
    try:
        yield
    except (UserError, RunError) as error:
        line, code = line_and_code(error)
        print(line, file=sys.stderr, flush=True)
        os._exit(code)


def _look_ahead(config) -> None:
    """Compiles instead of training."""
    if _AOT.value:
        os.environ["JAX_PLATFORMS"] = "cpu"  # the devices compiled for are not here
    from janus_jax.run.planning import aot, plan

    logging.set_verbosity(logging.ERROR)
    out = Path(_OUT.value) if _OUT.value else None
    if _PLAN.value:
        plan(config, _AOT.value, _CODES.value, out)
    else:
        aot(config, _AOT.value, _CODES.value, out)


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
            "Flags: --config NAME[:VARIANT], --workdir DIR|gs://BUCKET/RUN, --quiet, --config.FIELD=VALUE,\n"
            "       --allow_change=FIELD,... (of a run that has begun: go on with another value)\n"
            "       --aot TOPOLOGY, --plan [--codes] [--out FILE] (say what a step needs, and stop)"
        )
        sys.exit(0)
    run_main(main)


if __name__ == "__main__":
    command()
