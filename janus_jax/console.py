"""What is shown in a terminal: no text can steer it, and no text that it cannot show ends a program."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO

# Control characters, line separators, those that turn the direction of the text that follows, and halves of
# characters, which no encoding has.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, keep: str = "") -> str:
    r"""`text` with everything that would steer a terminal written out, such as \x1b.

    Args:
      text: a name, message or answer from outside of the program; `str` is called on it.
      keep: control characters that stay, such as "\n\t" of an answer.
    """
    show = lambda m: m[0] if m[0] in keep else m[0].encode("unicode_escape").decode()
    return _STEERING.sub(show, str(text))


@contextlib.contextmanager
def forgiving_streams() -> Iterator[None]:
    r"""While it lasts, standard output and error never fail because of what is written or who reads.

    Characters that the terminal's encoding lacks are written out (\u4f60), and once the reader of a
    pipe, or the terminal, has gone nothing more is written. Other errors, such as a full disk, are raised.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    opened = []
    if hasattr(sys.stdin, "reconfigure"):
        # What the encoding lacks may be of the name of a file, which is bytes; in a text it is refused.
        sys.stdin.reconfigure(errors="surrogateescape")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the caller closed it
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            opened.append(stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Forgiving(stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before
        for stream in opened:
            stream.close()


class _Forgiving:
    """A text stream whose reader may go away; everything else is that of `stream`."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._is_terminal = stream.isatty()  # asked now: one that is gone says no

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action) -> None:
        try:
            action()
        except OSError as error:
            # What is left in the buffer must not fail once more when the interpreter ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            closed = self._is_terminal and error.errno == errno.EIO
            if not (closed or isinstance(error, BrokenPipeError)):
                raise
