"""SIGTERM, its like and Ctrl-C as a request: the training loop answers it at the next step, after a save.

A handler that raises would do so anywhere, such as inside a save or a callback of JAX, and end in
tracebacks or be lost; here a thread listens and only marks. Where there is nothing to save it ends the
process, which is safe at any moment, because files appear only when they are whole.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# SIGHUP: the terminal or ssh session is gone; SIGUSR1: what Slurm's --signal=USR1 sends before the end.
EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGHUP: 0, signal.SIGUSR1: 0}
_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGUSR1)
AGAIN = "run the same command again to continue"


class StopSignals:
    """A context manager that takes over `EXIT_CODES`; only for the main thread.

    SIGHUP and SIGUSR1 stay ignored where they were, as under nohup.

    Attributes:
      requested: the signal that asked to stop, or None.
    """

    def __init__(self):
        self.requested: signal.Signals | None = None
        self._saving = self._handed_over = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Python's own handlers wait for the main thread, which may be in XLA for minutes; the pipe is
        # written at once.
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        ignored = {s for s in _MAY_BE_IGNORED if signal.getsignal(s) == signal.SIG_IGN}
        self._before = {s: signal.signal(s, lambda *_: None) for s in {*EXIT_CODES} - ignored}
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if not (self._handed_over and number == signal.SIGTERM):
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)  # ends the thread

    def hand_over(self) -> None:
        """Leaves SIGTERM to JAX, whose `jax.distributed.initialize` has installed its own handler and
        stops all processes at the same step; the others become a SIGTERM, as one must not stop alone, nor
        at once: the rest of the job would break off in the middle of a computation."""
        self._handed_over = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a first signal only sets `requested`; a second Ctrl-C ends the process at once."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False
        if self.requested is not None and not self._handed_over:
            # It came after the last time anybody looked; everything is saved.
            _leave(self.requested, f"stopped by {self.requested.name}")

    def _listen(self) -> None:
        with os.fdopen(self._read, "rb", buffering=0) as pipe:
            while byte := pipe.read(1):
                if byte[0] in EXIT_CODES:
                    self._handle(signal.Signals(byte[0]))

    def _handle(self, number: signal.Signals) -> None:
        if not (self._saving or self._handed_over):
            _leave(number, f"stopped by {number.name}")
        if self.requested is None:
            self.requested = number
            when = "after this step and a save" if self._saving else "at the next step, or sooner"
            _say(f"\n{number.name}: stopping {when} (Ctrl-C again: at once)")
            if self._handed_over:
                os.kill(os.getpid(), signal.SIGTERM)
        elif number == signal.SIGINT:
            _leave(number, "stopped at once; what came after the last save is lost")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _leave(number: signal.Signals, line: str) -> None:
    _say(f"\n{line}; {AGAIN}")
    os._exit(EXIT_CODES[number])
