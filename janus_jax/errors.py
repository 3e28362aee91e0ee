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


class UserError(ValueError):
    """Bad input: a file, flag, config field, prompt or image. Exit code 2."""


class RunError(RuntimeError):
    """A run that could not go on, such as a non-finite loss. Exit code 1."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the option closest to `name`, or "" if none is close."""
    match = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def one_line(error: BaseException) -> str:
    """The message of `error` on one line."""
    return " ".join(str(error).split())


def run_main(main: Callable[[], None]) -> None:
    """Runs an entry point; turns the errors above, and a full disk, into one line and an exit code."""
    try:
        main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: no space left on the disk ({error.filename or 'while writing'}); "
            "free some and run the same command again: earlier checkpoints are intact",
            file=sys.stderr,
        )
        sys.exit(2)
