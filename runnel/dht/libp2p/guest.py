"""Trio inside of an asyncio loop's own thread, as its guest: what libp2p for Python runs on.

Both schedulers take turns on the thread, so that data pass between them without locks. Trio waits for
its sockets on a thread of its own pool while it has nothing to do; nothing of ours runs there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

_log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSED = "the network is closed"

STOP_S = 5.0
"""How long what runs on trio may take to end when it is cancelled."""


class TrioGuest:
    """Trio on the thread of the running asyncio loop, from `start` to `aclose`.

    What runs there belongs to one nursery, and ends with it. All methods are for the loop's thread,
    which has one guest at a time; between their turns, trio's synchronous functions may be called.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._ready: asyncio.Future[trio.Nursery] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._nursery: trio.Nursery
        self._closing = False

    @classmethod
    async def start(cls) -> TrioGuest:
        """A guest that takes calls."""
        guest = cls()
        trio.lowlevel.start_guest_run(
            guest._live,
            run_sync_soon_threadsafe=guest._loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=guest._loop.call_soon,
            done_callback=guest._done,
            host_uses_signal_set_wakeup_fd=True,
            restrict_keyboard_interrupt_to_checkpoints=True,
            strict_exception_groups=True,
        )
        guest._nursery = await guest._ready
        return guest

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Runs a function of trio and waits for its result; a cancellation here cancels it there.

        Raises:
            ConnectionError: the guest is closed, or closes meanwhile.
        """
        result: asyncio.Future[T] = self._loop.create_future()
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    value = await function(*args)
                    if not result.done():
                        result.set_result(value)
            except Exception as error:  # noqa: BLE001 - passed on to the caller
                if not result.done():
                    result.set_exception(error)
            finally:  # cancelled with the guest
                if not result.done():
                    result.set_exception(ConnectionAbortedError(_CLOSED))

        if self._closing:
            raise ConnectionAbortedError(_CLOSED)
        self._nursery.start_soon(run)
        try:
            return await result
        finally:
            scope.cancel()

    def spawn(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Runs a function of trio on its own until it ends or the guest is closed.

        What it raises is noted at DEBUG. Nothing happens once the guest is closed.
        """

        async def run() -> None:
            try:
                await function(*args)
            except Exception as error:  # noqa: BLE001 - a task border: one task's failure ends no other
                _log.debug("%s: %r", getattr(function, "__qualname__", function), error)

        if not self._closing:
            self._nursery.start_soon(run)

    async def aclose(self) -> None:
        """Cancels what runs on trio and waits for its end. Idempotent."""
        if not self._closing:
            self._closing = True
            self._nursery.cancel_scope.cancel()
        done, _ = await asyncio.wait([self._ended], timeout=STOP_S)
        if not done:
            _log.error("what runs on trio ignored its cancellation for %.0f s", STOP_S)

    async def _live(self) -> None:
        async with trio.open_nursery() as nursery:
            self._ready.set_result(nursery)
            await trio.sleep_forever()

    def _done(self, outcome: Any) -> None:
        self._closing = True
        error = getattr(outcome, "error", None)
        if error is not None and not self._ready.done():
            self._ready.set_exception(error)
        elif error is not None:
            _log.error("what runs on trio failed", exc_info=error)
        self._ended.set_result(None)
