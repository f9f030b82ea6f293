"""The inside of the I/O thread: one loop, the tasks it owns, and their common end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from runnel.errors import RunnelError

log = logging.getLogger(__name__)

T = TypeVar("T")
CoroutineFunction = Callable[..., Coroutine[Any, Any, T]]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class IoLoop:
    """A loop that runs until told to stop or until one of its owned tasks fails.

    `run` is the thread's body; `submit`, `own` and `stop` are for other threads. Every future
    that `submit` gave out is resolved at the latest when `run` returns.
    """

    def __init__(self, loop_factory: LoopFactory, *, grace_s: float) -> None:
        self.started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.failure: BaseException | None = None
        self._loop_factory = loop_factory
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._tasks: dict[asyncio.Task[Any], concurrent.futures.Future[Any] | None] = {}
        self._posted: set[concurrent.futures.Future[Any]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def run(self) -> None:
        """Runs the loop in this thread until its end."""
        runner = asyncio.Runner(loop_factory=self._loop_factory)
        try:
            runner.get_loop()  # made before the coroutine: if it fails, nothing is left unawaited
            runner.run(self._serve())
        except BaseException as error:  # the thread's end: kept for the next caller
            log.exception("the I/O thread died")
            self.failure = self.failure or error
        with self._lock:
            self._ended = True
            open_futures = [*self._posted, *self._tasks.values()]
        for future in open_futures:
            self._resolve(future, self.failure or concurrent.futures.CancelledError(), None)
        if not self.started.done():
            self.started.set_exception(self.failure or RuntimeError("the loop did not start"))
        if self._tasks:  # Runner.close would wait for tasks that ignore their cancellation
            runner.get_loop().close()
        else:
            runner.close()

    def submit(
        self, function: CoroutineFunction[T], args: tuple[Any, ...]
    ) -> concurrent.futures.Future[T]:
        """The future result of a coroutine; a `CancelledError` if the loop ends first."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            if not self._ended:
                self._posted.add(future)
        if not self._post(self._spawn, function, args, future):
            self._resolve(future, self.failure or concurrent.futures.CancelledError(), None)
        return future

    def own(self, function: CoroutineFunction[None], args: tuple[Any, ...]) -> None:
        """Runs a coroutine whose failure ends the loop."""
        self._post(self._spawn, function, args, None)

    def stop(self) -> None:
        """Begins the end: cancel, wait for the grace time, return from `run`. Idempotent."""
        self._post(self._stop.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.started.set_result(None)
        await self._stop.wait()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        _, stuck = await asyncio.wait(tasks, timeout=self._grace_s)
        for name in sorted(task.get_name() for task in stuck):
            log.error("task %s ignored its cancellation for %.1f s", name, self._grace_s)
        await asyncio.sleep(0)  # the callbacks of the ended ones

    def _spawn(
        self,
        function: CoroutineFunction[Any],
        args: tuple[Any, ...],
        future: concurrent.futures.Future[Any] | None,
    ) -> None:
        if future is not None:
            with self._lock:
                self._posted.discard(future)
            if future.done():
                return
        if self._stop.is_set():
            self._resolve(future, self.failure or concurrent.futures.CancelledError(), None)
            return
        loop = asyncio.get_running_loop()
        name = getattr(function, "__qualname__", repr(function))
        task = loop.create_task(function(*args), name=name)
        self._tasks[task] = future
        if future is None:
            task.add_done_callback(self._owned_done)
            return
        task.add_done_callback(self._submitted_done)
        future.add_done_callback(lambda done: done.cancelled() and self._post(task.cancel))

    def _owned_done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        error = None if task.cancelled() else task.exception()
        if error is not None and self.failure is None:
            # what was raised on purpose is a line for a person, at the next call
            trace = None if isinstance(error, RunnelError) else error
            log.error("%s failed and ends this peer: %s", task.get_name(), error, exc_info=trace)
            self.failure = error
            self._stop.set()

    def _submitted_done(self, task: asyncio.Task[Any]) -> None:
        future = self._tasks.pop(task)
        if task.cancelled():
            self._resolve(future, self.failure or concurrent.futures.CancelledError(), None)
        elif (error := task.exception()) is not None:
            self._resolve(future, error, None)
        else:
            self._resolve(future, None, task.result())

    def _resolve(
        self,
        future: concurrent.futures.Future[Any] | None,
        error: BaseException | None,
        result: Any,
    ) -> None:
        if future is None or future.done() or not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _post(self, callback: Callable[..., Any], *args: Any) -> bool:
        """Whether the loop still runs and takes the callback."""
        with self._lock:
            if self._loop is None or self._ended:
                return False
            self._loop.call_soon_threadsafe(callback, *args)
            return True
