"""Importing hivemind without what it does to the process: log handlers, start method, sharing, scipy."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing  # noqa: TID251 - only to put back what an import changed
import sys
import types
from collections.abc import Iterator

from runnel.dht.library_log import pass_on_as_debug

_NAME = "hivemind"


@contextlib.contextmanager
def undone(logger: logging.Logger) -> Iterator[None]:
    """Imports of hivemind inside of this leave the process as it was.

    hivemind creates locks when it is imported, which fixes the start method of multiprocessing;
    switches torch to sharing tensors by files; renames WARNING; prints its log in colours. It loads
    scipy's optimizers for its averaging, which takes half as long as all else: they load at first use.
    """
    start_method = multiprocessing.get_start_method(allow_none=True)
    strategy = _sharing_strategy()
    warning = logging.getLevelName(logging.WARNING)
    try:
        with postponed("scipy.optimize"):
            yield
    finally:
        multiprocessing.set_start_method(start_method, force=True)
        logging.addLevelName(logging.WARNING, warning)
        torch_sharing = sys.modules.get("torch.multiprocessing")
        if torch_sharing is not None and strategy in torch_sharing.get_all_sharing_strategies():
            torch_sharing.set_sharing_strategy(strategy)
        pass_on_as_debug(_NAME, logger)


@contextlib.contextmanager
def postponed(name: str) -> Iterator[None]:
    """Imports of the module `name` inside of this load nothing; it is loaded when it is first used."""
    if name in sys.modules:
        yield
        return
    stand_in = types.ModuleType(name)

    def load(attribute: str) -> object:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in.__getattr__ = load  # type: ignore[method-assign]  # of modules, PEP 562
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _sharing_strategy() -> str:
    """The one that torch has, or would have if it were imported now."""
    torch_sharing = sys.modules.get("torch.multiprocessing")
    if torch_sharing is not None:
        return str(torch_sharing.get_sharing_strategy())
    return "file_descriptor" if sys.platform.startswith("linux") else "file_system"
