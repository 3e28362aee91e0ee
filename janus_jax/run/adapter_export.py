"""The adapter of a finished stage, as files that PEFT reads: RUN/adapter/STAGE/."""

from __future__ import annotations

import sys

from janus_jax.errors import UserError, one_line
from janus_jax.interop.adapters import trained_adapter, write_adapter
from janus_jax.parallel import first_only, is_first
from janus_jax.run.place import RunPlace
from janus_jax.training import Stage

DIRECTORY = "adapter"


def export_adapter(place: RunPlace, stage: Stage, again: bool, step: int | None = None) -> None:
    """Writes the adapter of a stage that has one.

    All processes read it, as Orbax wants them to, and the first one writes. What cannot be written is said in a
    line: the checkpoint holds it all the same.

    Args:
      place: of the run.
      stage: it is finished, or was stopped early.
      again: whether it has been trained now; else only what is missing is written.
      step: whose checkpoint is taken; None for the newest.
    """
    directory = place.files / DIRECTORY / stage.name
    if "lora" not in stage.options or not first_only(lambda: again or not directory.exists()):
        return
    try:
        # Its files were compared when they were written.
        found = trained_adapter(place.address, step, stage=stage.name, verify=False)
        if is_first():
            write_adapter(found.params, found.config, directory, found.base)
    except (UserError, OSError) as error:
        if is_first():
            text = place.said(one_line(error))
            print(f"warning: no files of the adapter of {stage.name}: {text}", file=sys.stderr)
