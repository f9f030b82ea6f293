"""How a peer ends when nobody says so: dropped, or alive when the program is over.

A node is held by its threads, so it outlives the session that an author drops; and threads that are
still at work when the interpreter ends leave a daemon behind for seconds and complain on the way.
A forked child has a copy of the node without its threads, and the same files: what ends there ends nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import threading
import weakref
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 2.0


class Node(Protocol):
    """What can be ended; `PeerNode` is one."""

    @property
    def is_closed(self) -> bool:
        """Whether it has stopped."""
        ...

    def leave(self, timeout_s: float) -> None:
        """Leaves in order, then closes."""
        ...

    def close(self, reason: str = ...) -> None:
        """Stops at once; idempotent."""
        ...


class Ending:
    """The end of one node, and of the folder that was made for it."""

    def __init__(self, node: Node, scratch: Path | None) -> None:
        """`scratch` is removed once the node has stopped."""
        self._node, self._scratch = node, scratch
        self._pid, self._has_told = os.getpid(), False
        # Before executors are shut down, which is earlier than atexit; there is no public way.
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_at_exit, weakref.ref(self))

    def watch(self, owner: object) -> None:
        """Closes the node when `owner` is collected."""
        dropped = weakref.finalize(owner, _drop, self)
        dropped.atexit = False  # `_at_exit` is earlier

    def leave(self, timeout_s: float) -> None:
        """Leaves in order; whatever interrupts that, the node is closed afterwards."""
        if self._is_the_parents():
            return
        try:
            self._node.leave(timeout_s)
        finally:
            self.close("interrupted")

    def close(self, reason: str) -> None:
        """Stops at once; idempotent."""
        if self._is_the_parents():
            return
        self._node.close(reason)
        remove(self._scratch)

    @property
    def is_due(self) -> bool:
        """Whether the node is this process' own and has not stopped."""
        return os.getpid() == self._pid and not self._node.is_closed

    def _is_the_parents(self) -> bool:
        """Whether this is a forked child, which is told so once."""
        if os.getpid() == self._pid:
            return False
        if not self._has_told:
            self._has_told = True
            logger.warning(
                "a peer cannot be used in a forked child: it stays the parent's, and nothing was done"
            )
        return True


def remove(scratch: Path | None) -> None:
    """Removes a folder that was made for one peer, if there is one."""
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def _drop(ending: Ending) -> None:
    if not ending.is_due:
        return
    # In a thread of its own: the collector may run in any thread, also in one that is to be ended.
    threading.Thread(
        target=ending.close, args=("dropped",), name="runnel-close", daemon=True
    ).start()


def _at_exit(reference: weakref.ref[Ending]) -> None:
    ending = reference()
    if ending is not None and ending.is_due:
        ending.leave(_LAST_WORDS_S)
