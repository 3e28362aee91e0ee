"""A trace of some steps of a stage, for XProf or TensorBoard."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from janus_jax.errors import UserError, one_line
from janus_jax.parallel import is_first
from janus_jax.untrusted import shown


def profiled_steps(text: str) -> tuple[int, int] | None:
    """(first, last) of "10:15", counted from 1; None for "".

    Raises:
      UserError: it is neither.
    """
    if text == "":
        return None
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text) if isinstance(text, str) else None
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise UserError(
        f'config.profile must be the first and the last step to trace, such as 10:15, or "" for none, '
        f"not {shown(text)}"
    )


class Profiler:
    """Traces some of the steps that this process makes in one stage; nothing without `steps`.

    In a job of several processes only the first one traces. A trace that cannot be made is a line on stderr:
    it ends no training.

    Args:
      steps: (first, last), counted from 1 in this process, so that a run that goes on is traced after its
        compilation, too.
      directory: where the trace goes.
      name: of the stage, for messages.
      say: prints a line.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        directory: Path,
        name: str,
        say: Callable[[str], None] = lambda line: tqdm.write(line, file=sys.stderr),
    ):
        self._steps = steps if is_first() else None
        self._directory, self._name, self._say = directory, name, say
        self._count = 0
        self._open = False  # a trace is being written
        self._step: contextlib.AbstractContextManager | None = None

    def before(self, step: int) -> None:
        """Before a step is handed to the device; `step` is its number in the stage."""
        if self._steps is None:
            return
        self._count += 1
        if self._count == self._steps[0]:
            self._attempt(self._start)
        if self._open:
            self._step = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._step.__enter__()

    def after(self, outputs: Any) -> None:
        """After a step was handed to the device; `outputs` are arrays that are ready when it has ended."""
        if self._steps is None:
            return
        self._end_step()
        if self._count in (self._steps[0] - 1, self._steps[1]):
            # Steps run behind the loop: what is still on its way belongs to the other side.
            jax.block_until_ready(outputs)
        if self._count == self._steps[1]:
            self.close()

    def close(self) -> None:
        """Ends the trace, if one is being written; says so if there was none. Safe to call again."""
        if self._steps is None:
            return
        self._end_step()
        if self._open:
            self._open = False
            self._attempt(self._stop)
        elif self._count < self._steps[0]:
            self._say(
                f"{self._name}: nothing was traced, as this process made {self._count} steps of it, and "
                f"config.profile begins with step {self._steps[0]}"
            )
        self._steps = None

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(str(self._directory))
        self._open = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        last = min(self._count, self._steps[1])
        self._say(
            f"{self._name}: steps {self._steps[0]} to {last} are traced in {self._directory}; to look at "
            f"them: pip install xprof, then xprof --logdir {self._directory} (or TensorBoard with it)"
        )

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, RuntimeError) as error:
            self._say(f"warning: {self._name} is not traced: {one_line(error)}")
            self._steps, self._open = None, False
