"""Logs of libraries: their warnings are no user's business."""

from __future__ import annotations

import logging


class _AsDebug(logging.Handler):
    """Passes records of another library on as DEBUG of ours."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._logger.debug("%s: %s", record.name, record.getMessage(), exc_info=record.exc_info)


def pass_on_as_debug(library: str, logger: logging.Logger) -> None:
    """From now on what `library` logs goes to `logger` as DEBUG, and nowhere else."""
    theirs = logging.getLogger(library)
    theirs.handlers[:] = [_AsDebug(logger)]
    theirs.propagate = False
    theirs.setLevel(logging.NOTSET if logger.isEnabledFor(logging.DEBUG) else logging.CRITICAL)
