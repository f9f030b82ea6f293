"""Runtimes of simulated peers: one loop in virtual time for all, each peer a process that can freeze or die.

Everything that a peer does carries its `Process` in the context; whatever the loop runs for a frozen
one is held until it goes on, and a dead one's tasks are cancelled. What blocks in a peer (starting,
leaving) runs in a thread of its own, but never at the same time as the loop or another such thread:
each waits for its turn, so that histories repeat.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from runnel.dht.virtual_loop import VirtualLoop
from runnel.errors import BugError
from runnel.node.runtime import RuntimeClosedError

T = TypeVar("T")
CoroutineFunction = Callable[..., Coroutine[Any, Any, T]]

UNIX_S = 1_700_000_000.0
"""Seconds since 1970 at which every simulation begins."""

_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class LoopClock:
    """The clock of all simulated peers; implements `runnel.clock.Clock`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return self._loop.time()

    def unix_s(self) -> float:
        """See `Clock.unix_s`."""
        return UNIX_S + self._loop.time()


class SimLoop(VirtualLoop):
    """A loop in virtual time that knows whose each callback is."""

    def call_soon(  # type: ignore[override]  # the arguments' types are asyncio's business
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon`; held while its process is frozen."""
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        call = _Call(process, callback, args, context)
        call.handle = super().call_soon(call, context=call.context)
        return call.handle

    def call_at(  # type: ignore[override]  # the same
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`; held while its process is frozen."""
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        call = _Call(process, callback, args, context)
        call.handle = timer = super().call_at(when, call, context=call.context)
        return timer

    def again(self, call: _Call) -> None:
        """Runs a callback that was held."""
        super().call_soon(call, context=call.context)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """See `asyncio.loop.create_task`; its process ends it."""
        task = super().create_task(coro, **options)
        context = options.get("context")
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is not None:
            process.take(task)
        return task


class _Call:
    """A callback of a process, in the context that it is to run in."""

    __slots__ = ("_args", "_callback", "_process", "context", "handle")

    def __init__(
        self,
        process: Process,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> None:
        self._process, self._callback, self._args = process, callback, args
        self.context = contextvars.copy_context() if context is None else context
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if self._process.is_frozen:
            self._process.hold(self)
        elif self.handle is None or not self.handle.cancelled():  # perhaps since it was held
            self._callback(*self._args)


class Process:
    """All that runs of one peer from a start to the end that follows."""

    def __init__(self, loop: SimLoop, turns: Turns) -> None:
        self.is_frozen = self.is_dead = False
        self.turns, self._loop = turns, loop
        self._held: deque[_Call] = deque()
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def spawn(self, function: CoroutineFunction[T], *args: Any) -> asyncio.Task[T]:
        """Runs a coroutine as this process."""
        context = contextvars.copy_context()
        context.run(_PROCESS.set, self)
        task: asyncio.Task[T] = self._loop.create_task(function(*args), context=context)
        return task

    async def block(self, work: Callable[[], T]) -> T:
        """Runs, as this process, what blocks on its runtime; to be awaited on the loop."""
        context = contextvars.copy_context()
        context.run(_PROCESS.set, self)
        done: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                result = context.run(work)
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits
                done.set_exception(error)
            else:
                done.set_result(result)

        self.turns.start(run)  # which sets the result while the loop waits for its turn
        return await asyncio.shield(done)

    def take(self, task: asyncio.Task[Any]) -> None:
        """Takes a task for its own; a dead process has none."""
        if self.is_dead:
            task.cancel()
        self._tasks[task] = None
        task.add_done_callback(self._forget)

    def hold(self, call: _Call) -> None:
        """Keeps a callback until this process goes on."""
        self._held.append(call)

    def freeze(self) -> None:
        """Stops it where it is, as SIGSTOP does: what it has sent arrives, what comes in waits."""
        self.is_frozen = not self.is_dead

    def thaw(self) -> None:
        """Lets it go on, first with what was held."""
        self.is_frozen = False
        held, self._held = self._held, deque()
        for call in held:
            self._loop.again(call)

    async def kill(self) -> None:
        """Ends it; returns once nothing of it runs any more."""
        self.is_dead = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self.thaw()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)


class Turns:
    """Lets one thread run at a time: the loop's, or one of those that block on the loop."""

    def __init__(self) -> None:
        self._loop_turn = threading.Semaphore(0)
        self._loop_thread = threading.get_ident()

    @property
    def is_loops(self) -> bool:
        """Whether the caller is the loop's thread."""
        return threading.get_ident() == self._loop_thread

    def start(self, work: Callable[[], None]) -> None:
        """Runs `work` in a thread up to its end, or up to where it waits for the loop."""

        def run() -> None:
            try:
                work()
            finally:
                self._loop_turn.release()

        threading.Thread(target=run, name="sim-peer", daemon=True).start()
        self._loop_turn.acquire()

    def wait_for(self, future: concurrent.futures.Future[Any]) -> None:
        """Lets the loop run until `future`, which the loop's thread resolves, is done."""
        turn = threading.Semaphore(0)

        def resume(_: object) -> None:
            turn.release()
            self._loop_turn.acquire()

        future.add_done_callback(resume)
        self._loop_turn.release()
        turn.acquire()


class SimRuntime:
    """One process' door to the loop; implements `runnel.node.runtime.PeerRuntime`. Jobs take no time."""

    def __init__(self, loop: SimLoop, process: Process) -> None:
        self.failure: BaseException | None = None
        self._loop, self._process, self._turns = loop, process, process.turns

    def submit(self, function: CoroutineFunction[T], *args: Any) -> concurrent.futures.Future[T]:
        """See `Runtime.submit`."""
        if self._turns.is_loops:
            raise BugError("waiting on the loop for itself: await the coroutine instead")
        self._check()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        task = self._process.spawn(function, *args)
        task.add_done_callback(lambda done: _resolve(future, done))
        return future

    def call(self, function: CoroutineFunction[T], *args: Any, timeout_s: float) -> T:
        """See `Runtime.call`."""

        async def bounded() -> T:
            async with asyncio.timeout(timeout_s):
                return await function(*args)

        future = self.submit(bounded)
        self._turns.wait_for(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise RuntimeClosedError("this peer's process has ended") from error

    def heed(self, stop: threading.Event | None) -> None:
        """See `Runtime.heed`; nobody interrupts a simulated peer."""

    def own(self, function: CoroutineFunction[None], *args: Any) -> None:
        """See `Runtime.own`."""
        self._check()
        self._process.spawn(function, *args).add_done_callback(self._ended)

    async def codec(self, function: Callable[..., T], *args: Any) -> T:
        """See `Runtime.codec`."""
        return function(*args)

    async def load(self, function: Callable[..., T], *args: Any) -> T:
        """See `Runtime.load`."""
        return function(*args)

    async def disk(self, function: Callable[..., T], *args: Any) -> T:
        """See `Runtime.disk`."""
        return function(*args)

    def close(self) -> None:
        """See `Runtime.close`; what runs is cancelled, and ends in the loop's next turns."""
        if not self._process.is_dead:
            self._process.is_dead = True
            self._loop.create_task(self._process.kill(), context=contextvars.Context())

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._process.is_dead:
            raise RuntimeClosedError("this peer's process has ended")

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self.failure = self.failure or error


def _resolve(future: concurrent.futures.Future[Any], task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        future.set_exception(concurrent.futures.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())
