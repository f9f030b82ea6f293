"""The one place that turns what went wrong into lines on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import typer

from runnel.errors import (
    EXIT_INTERRUPTED,
    BugError,
    ConfigError,
    PeerError,
    RunnelError,
    StorageError,
)

DEBUG_VARIABLE = "RUNNEL_DEBUG"
"""Set to anything, it shows the traceback of what should not have happened."""

_UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
"""typer exports it under another name in each version."""

_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
)


def exit_code_of(call: Callable[[], object]) -> int:
    """Runs a command; 0, what it returned if that is an int, or the exit code of its error.

    The error stands on stderr by then, one line for each thing to correct.
    """
    try:
        result = call()
    except Exception as error:  # noqa: BLE001 - the border to the shell: everything becomes a line
        problem = _as_runnel_error(error)
        if problem is None:
            return EXIT_INTERRUPTED
        for line in _lines(problem):
            print(f"runnel: {line}", file=sys.stderr)
        if isinstance(problem, BugError) and os.environ.get(DEBUG_VARIABLE):
            traceback.print_exception(error)
        return problem.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _as_runnel_error(error: Exception) -> RunnelError | None:
    """None for an interrupt."""
    if isinstance(error, typer.Abort):
        return None
    if isinstance(error, RunnelError) and not isinstance(error, PeerError):
        return error
    if isinstance(error, _UsageError):
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        return ConfigError(f"{text.rstrip('.')}: `runnel --help` shows what there is")
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        reason = (error.strerror or str(error)).lower()
        return StorageError(
            f"{error.filename or 'the disk'}: {reason}, expected a place to write:"
            " free some space or choose another folder"
        )
    return BugError(
        f"this should not have happened: {type(error).__name__}: {error}: please report it;"
        f" {DEBUG_VARIABLE}=1 shows where"
    )


def _lines(error: RunnelError) -> Iterator[str]:
    text = str(error) or type(error).__name__
    yield from (line for line in text.splitlines() if line.strip())
