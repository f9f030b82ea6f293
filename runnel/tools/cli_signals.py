"""Ctrl-C: the first one leaves in order, the second one exits at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from runnel.errors import EXIT_INTERRUPTED

_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
)
_NOTICE = b"\nleaving in order; Ctrl-C again exits at once\n"


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once: an import that is interrupted fails in odd ways.

    For the main thread only, and for code that leaves nothing half-done.
    """
    previous = signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def stop_on_signals(
    stop: threading.Event, *, before_exit: Callable[[], object] | None = None
) -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP sets `stop`; the second one ends the process.

    The second calls `before_exit`, exits with `errors.EXIT_INTERRUPTED` and runs nothing else: no
    finally, no atexit.
    Signals that are ignored (nohup) stay ignored. For the main thread only.
    """
    asked = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        del signum, frame
        if asked:
            try:
                if before_exit is not None:
                    before_exit()
            finally:
                os._exit(EXIT_INTERRUPTED)
        asked = True
        # Not print: the interrupted code may hold the buffer's lock. Not stop.set() here: it may
        # hold the event's.
        os.write(2, _NOTICE)
        threading.Thread(target=stop.set, name="runnel-stop", daemon=True).start()

    previous = {
        number: signal.signal(number, handle)
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
