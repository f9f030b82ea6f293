"""The one I/O thread, its event loop, and the two doors into it.

Coroutines run on the loop of the thread ``runnel-io``; arithmetic runs on ``runnel-codec-n``
threads, blocking writes on ``runnel-disk-0``. The thread that made the runtime (a trainer, a
notebook) keeps its own loop and its signal handlers: none of them is touched.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from runnel.errors import BugError, RunnelError
from runnel.node.io_loop import IoLoop

if TYPE_CHECKING:
    from types import TracebackType

    from runnel.node.io_loop import CoroutineFunction, LoopFactory

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_UNDO_S = 5.0
"""How long a call that was stopped may take to undo what it began: the network's daemon ends within three."""

T = TypeVar("T")


class RuntimeClosedError(RunnelError):
    """The runtime takes no more work: it is closed, or belongs to the parent of a forked process."""


class PeerRuntime(Protocol):
    """What a peer needs of its runtime: `Runtime` has threads for it, a simulation a loop in virtual time."""

    @property
    def failure(self) -> BaseException | None:
        """See `Runtime.failure`."""
        ...

    def submit(self, function: CoroutineFunction[T], *args: Any) -> concurrent.futures.Future[T]:
        """See `Runtime.submit`."""
        ...

    def call(self, function: CoroutineFunction[T], *args: Any, timeout_s: float) -> T:
        """See `Runtime.call`."""
        ...

    def heed(self, stop: threading.Event | None) -> None:
        """See `Runtime.heed`."""
        ...

    def own(self, function: CoroutineFunction[None], *args: Any) -> None:
        """See `Runtime.own`."""
        ...

    async def codec(self, function: Callable[..., T], *args: Any) -> T:
        """See `Runtime.codec`."""
        ...

    async def load(self, function: Callable[..., T], *args: Any) -> T:
        """See `Runtime.load`."""
        ...

    async def disk(self, function: Callable[..., T], *args: Any) -> T:
        """See `Runtime.disk`."""
        ...

    def close(self) -> None:
        """See `Runtime.close`."""
        ...


class Runtime:
    """One event loop in one daemon thread, with an orderly end.

    Args:
        codec_threads: threads for arithmetic on fragments.
        grace_s: how long cancelled tasks and running jobs may take to end.
        loop_factory: another kind of loop; by default uvloop's where it is installed.
    """

    def __init__(
        self,
        *,
        codec_threads: int = 1,
        grace_s: float = 2.0,
        loop_factory: LoopFactory | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._grace_s = grace_s
        self._codec = _Pool("runnel-codec", codec_threads)
        self._disk = _Pool("runnel-disk", 1)
        self._io = IoLoop(loop_factory or _fastest_loop(), grace_s=grace_s)
        self._state = "new"
        self._lock = threading.Lock()
        self._stop: threading.Event | None = None
        self._thread = threading.Thread(target=self._io.run, name="runnel-io", daemon=True)

    @property
    def failure(self) -> BaseException | None:
        """What ended the runtime, if an owned task did."""
        return self._io.failure

    def start(self) -> Self:
        """Starts the thread; returns once the loop runs.

        Raises:
            RuntimeClosedError: it was started or closed before.
        """
        with self._lock:
            if self._state != "new":
                raise RuntimeClosedError(f"the runtime is {self._state}; make a new one")
            self._state = "running"
        self._thread.start()
        self._io.started.result()
        return self

    def submit(self, function: CoroutineFunction[T], *args: Any) -> concurrent.futures.Future[T]:
        """Runs a coroutine on the loop; cancelling the future cancels it.

        Raises:
            RuntimeClosedError: closed, or made before a fork.
            BugError: called from the I/O thread.
            BaseException: what an owned task failed with.
        """
        if threading.get_ident() == self._thread.ident:
            raise BugError("waiting on the I/O thread for itself: await the coroutine instead")
        self._check_running()
        return self._io.submit(function, args)

    def call(self, function: CoroutineFunction[T], *args: Any, timeout_s: float) -> T:
        """Runs a coroutine on the loop and waits for its result.

        Raises:
            TimeoutError: no result within `timeout_s`; the coroutine is cancelled.
            KeyboardInterrupt: see `heed`; the coroutine is cancelled, and has ended.
            RuntimeClosedError, BugError, BaseException: see `submit`; and what the coroutine raises.
        """
        name = getattr(function, "__qualname__", repr(function))
        ended = threading.Event()

        async def bounded() -> T:
            limit = asyncio.timeout(timeout_s)
            try:
                async with limit:
                    return await function(*args)
            except TimeoutError as error:
                if limit.expired():
                    raise TimeoutError(f"{name} did not finish within {timeout_s:g} s") from error
                raise
            finally:
                ended.set()

        bounded.__qualname__ = name  # by which a task is reported that does not end
        future = self.submit(bounded)
        try:
            return self._result(future, ended, timeout_s + self._grace_s)
        except TimeoutError:
            if future.done():
                raise
            raise TimeoutError(
                f"{name} did not even time out within {timeout_s:g} s: the I/O thread is blocked"
            ) from None
        except concurrent.futures.CancelledError as error:
            raise RuntimeClosedError(f"the runtime closed while {name} ran") from error
        finally:
            future.cancel()

    def heed(self, stop: threading.Event | None) -> None:
        """From now on `call` ends with KeyboardInterrupt once `stop` is set, one time; None ends that."""
        self._stop = stop

    def _result(
        self, future: concurrent.futures.Future[T], ended: threading.Event, limit_s: float
    ) -> T:
        stop = self._stop
        if stop is None:
            return future.result(limit_s)
        for _ in range(math.ceil(limit_s / _LOOK_S)):
            if stop.is_set():
                self._stop = None  # what follows is for closing in order
                future.cancel()
                ended.wait(_UNDO_S)
                raise KeyboardInterrupt
            if concurrent.futures.wait([future], _LOOK_S).done:
                break
        return future.result(0)

    def own(self, function: CoroutineFunction[None], *args: Any) -> None:
        """Runs a coroutine for as long as it likes; any thread. If it fails, the runtime ends with it.

        The failure is logged, kept in `failure`, and raised by the next `submit`, `call` or `own`.
        """
        self._check_running()
        self._io.own(function, args)

    async def codec(self, function: Callable[..., T], *args: Any) -> T:
        """Runs arithmetic on a codec thread; from coroutines of this runtime."""
        return await self._codec.run(function, *args)

    async def load(self, function: Callable[..., T], *args: Any) -> T:
        """As `codec`, for what loads code: whoever closes meanwhile neither waits for it nor complains."""
        return await self._codec.run(self._codec.expendable(function), *args)

    async def disk(self, function: Callable[..., T], *args: Any) -> T:
        """Runs a blocking write on the disk thread, in the order of calls; from coroutines of this runtime.

        A write that has begun is finished even if the awaiting coroutine is cancelled.
        """
        return await self._disk.run(function, *args)

    def close(self) -> None:
        """Cancels what runs, waits at most the grace time for each kind of thread, and ends them.

        Idempotent. Tasks that ignore the cancellation and jobs that do not end are named in the log.

        Raises:
            BugError: called from the I/O thread.
        """
        if os.getpid() != self._pid:
            return  # a forked child has none of the threads
        if threading.get_ident() == self._thread.ident:
            raise BugError("close() from the I/O thread waits for itself: close from another one")
        with self._lock:
            started, self._state = self._state != "new", "closed"
        if not started:
            return
        self._io.stop()
        limit_s = 2 * self._grace_s + 1.0
        self._thread.join(limit_s)
        if self._thread.is_alive():
            log.error("the I/O thread did not end within %.1f s", limit_s)
        for pool in (self._codec, self._disk):
            pool.close(self._grace_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_running(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeClosedError("the runtime was made before a fork; make one in the child")
        if self._io.failure is not None:
            raise self._io.failure
        if self._state != "running":
            raise RuntimeClosedError(f"the runtime is {self._state}")


class _Pool:
    """Threads with plain names that end when told, within a time."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count()
        self._is_loading = False
        self._executor = concurrent.futures.ThreadPoolExecutor(threads, initializer=self._enter)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *args)

    def expendable(self, function: Callable[..., T]) -> Callable[..., T]:
        """The same, noted while it runs as something that need not come to its end."""

        @functools.wraps(function)
        def noted(*args: Any) -> T:
            self._is_loading = True
            try:
                return function(*args)
            finally:
                self._is_loading = False

        return noted

    def close(self, grace_s: float) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            if self._is_loading:
                continue
            thread.join(grace_s)
            if thread.is_alive():
                log.error("a job on %s did not end within %.1f s", thread.name, grace_s)

    def _enter(self) -> None:
        thread = threading.current_thread()
        thread.name = f"{self._name}-{next(self._numbers)}"
        self._threads.append(thread)


def _fastest_loop() -> LoopFactory:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop
    factory: LoopFactory = uvloop.new_event_loop
    return factory
