"""Importing hivemind without what it does to the process: log handlers, start method, sharing."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing  # noqa: TID251 - only to put back what an import changed
import sys
from collections.abc import Iterator

from runnel.dht.library_log import pass_on_as_debug

_NAME = "hivemind"


@contextlib.contextmanager
def undone(logger: logging.Logger) -> Iterator[None]:
    """Imports of hivemind inside of this leave the process as it was.

    hivemind creates locks when it is imported, which fixes the start method of multiprocessing;
    switches torch to sharing tensors by files; renames WARNING; prints its log in colours.
    """
    start_method = multiprocessing.get_start_method(allow_none=True)
    strategy = _sharing_strategy()
    warning = logging.getLevelName(logging.WARNING)
    try:
        yield
    finally:
        multiprocessing.set_start_method(start_method, force=True)
        logging.addLevelName(logging.WARNING, warning)
        torch_sharing = sys.modules.get("torch.multiprocessing")
        if torch_sharing is not None and strategy in torch_sharing.get_all_sharing_strategies():
            torch_sharing.set_sharing_strategy(strategy)
        pass_on_as_debug(_NAME, logger)


def _sharing_strategy() -> str:
    """The one that torch has, or would have if it were imported now."""
    torch_sharing = sys.modules.get("torch.multiprocessing")
    if torch_sharing is not None:
        return str(torch_sharing.get_sharing_strategy())
    return "file_descriptor" if sys.platform.startswith("linux") else "file_system"
