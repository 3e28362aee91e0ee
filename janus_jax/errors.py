"""Errors that a person can act on, and the exit codes they become.

`UserError`: the input is wrong (exit code 2). `RunError`: the run itself failed (exit code 1).
Both carry one line that says what is wrong, where, and what to do; an entry point prints that line
to stderr without a traceback. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable

from janus_jax.console import forgiving_streams, printable

# What to do about a place that cannot be used.
_ADVICE = {
    errno.EACCES: "choose a place that you may use",
    errno.EPERM: "choose a place that you may use",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "a directory is in the place of a file",
    errno.EEXIST: "something else has this name: choose another, or move it",
    errno.ENOTEMPTY: "something else has this name: choose another, or move it",
    errno.EBUSY: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "links lead in a circle there",
}


class UserError(ValueError):
    """Bad input: a file, flag, config field, prompt or image. Exit code 2."""


class RunError(RuntimeError):
    """A run that could not go on, such as a non-finite loss. Exit code 1."""


class NumbersError(RunError):
    """Losses, gradients or parameters of a run are not finite, or have left their history."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the option closest to `name`, or "" if none is close."""
    match = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, without anything that steers a terminal."""
    return printable(" ".join(str(error).split()))


def about_place(error: OSError) -> str:
    """What is wrong with the file or directory that `error` names, and what to do."""
    # Of a rename, the second name is the one that somebody chose.
    name = error.filename if error.filename2 is None else error.filename2
    name = name.decode(errors="replace") if isinstance(name, bytes) else name
    advice = _ADVICE.get(error.errno)
    return f"{name}: {error.strerror or error}" + (f"; {advice}" if advice else "")


def line_and_code(error: BaseException) -> tuple[str, int] | None:
    """What an entry point prints of an error, and its exit code; None for a bug, which keeps its traceback."""
    if isinstance(error, UserError | RunError):
        return f"error: {one_line(error)}", 2 if isinstance(error, UserError) else 1
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = printable(error.filename or "while writing")
        return (
            f"error: no space left on the disk ({place}); free some and run the same command "
            "again: earlier checkpoints are intact",
            2,
        )
    return None if error.filename is None else (f"error: {printable(about_place(error))}", 2)


def run_main(main: Callable[[], None]) -> None:
    """Runs an entry point; turns the errors above, an unusable place and a full disk into one line and
    an exit code. A terminal that cannot show a text, or a closed pipe, is no error."""
    with forgiving_streams():
        try:
            main()
            sys.stdout.flush()
        except KeyboardInterrupt:
            _leave("interrupted; run the same command again to continue", 130)
        except Exception as error:
            known = line_and_code(error)
            if known is None:
                raise
            _leave(*known)


def _leave(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)
