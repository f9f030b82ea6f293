"""An event loop whose time is a number: hours of waiting pass in the time that the work takes.

Whenever nothing is ready, the clock jumps to the next timer. Equal programs with equal seeds make
equal histories. Functions given to executors run at once, in the loop's thread; other threads have
no place in a simulation.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

from runnel.errors import BugError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_T = TypeVar("_T")

MAX_TURNS_AT_ONE_TIME = 1_000_000
"""Turns of the loop without time passing after which tasks are taken to chase each other for ever."""

_TASKS_NAMED = 8
_LOOK_CALLS = 64
"""Real sockets, by which signals wake the loop, are looked at once in so many calls."""


class _VirtualSelector(selectors.SelectSelector):
    """Never waits: moves its clock by as long as it was told to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.limit_s = math.inf
        self.explain: Callable[[], str] = str
        self._turns = self._calls = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._calls += 1
        if timeout is None or self._calls % _LOOK_CALLS == 0:  # else nothing real is waited for
            ready = super().select(0)
            if ready:
                return ready
        if timeout is None:
            raise BugError(
                f"deadlock at virtual t={self.now_s:.6f} s: every task waits and no timer is set"
                f"{self.explain()}"
            )
        if timeout > 0:
            if self.now_s + timeout > self.limit_s:
                self.now_s, self.limit_s = self.limit_s, math.inf  # tasks need time to clean up
                raise TimeoutError(
                    f"still running after {self.now_s} virtual seconds{self.explain()}"
                )
            self.now_s += timeout
            self._turns = 0
            return []
        self._turns += 1
        if self._turns > MAX_TURNS_AT_ONE_TIME:
            raise BugError(
                f"livelock at virtual t={self.now_s:.6f} s: {self._turns} turns of the loop and "
                f"time stands still{self.explain()}"
            )
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time, starting at 0.

    Raises ``BugError`` out of ``run_until_complete`` when everything waits for ever (the message
    names the time and the waiting tasks), and when time stands still for ever; ``TimeoutError``
    at `limit_s`.
    """

    def __init__(self, *, limit_s: float = math.inf) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        self._virtual.explain = self._waiting_tasks
        self._virtual.limit_s = limit_s
        # Timers within the resolution fire together; the real clock's is far too coarse here.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual.now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        """Runs `func` now, in this thread: threads would make histories depend on the machine."""
        del executor
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the future
            future.set_exception(error)
        return future

    def _waiting_tasks(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        lines = [f"\n  {task.get_name()} at {_place(task)}" for task in tasks[:_TASKS_NAMED]]
        more = len(tasks) - len(lines)
        return "".join(lines) + (f"\n  and {more} more" if more else "")


def run_virtual(main: Callable[[], Coroutine[Any, Any, _T]], *, limit_s: float = 24 * 3600.0) -> _T:
    """Runs ``main()`` to its end on a new `VirtualLoop`; its result.

    Args:
        main: makes the coroutine; called inside the loop.
        limit_s: virtual seconds that it may take.

    Raises:
        TimeoutError: still running after `limit_s` virtual seconds.
        BugError: everything waits for ever.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(limit_s=limit_s)) as runner:
        return runner.run(main())


def _place(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    if not frames:
        return "its end"
    code = frames[-1].f_code
    return f"{code.co_qualname} ({code.co_filename.rsplit('/', 1)[-1]}:{frames[-1].f_lineno})"
