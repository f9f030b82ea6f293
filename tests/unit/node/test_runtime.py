"""The runtime: its doors, its deadlines, its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runnel.errors import BugError
from runnel.node import runtime as runtime_module
from runnel.node.runtime import Runtime, RuntimeClosedError


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def forever(begun: threading.Event | None = None) -> None:
    if begun is not None:
        begun.set()
    await asyncio.sleep(3600)


async def fail(message: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(message)


@pytest.fixture(params=["fastest", "asyncio"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    factory = asyncio.new_event_loop if request.param == "asyncio" else None
    with Runtime(loop_factory=factory, grace_s=0.5) as running:
        yield running


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("runnel-")}


def test_a_call_gives_the_result_and_the_error_of_its_coroutine(runtime: Runtime) -> None:
    assert runtime.call(double, 21, timeout_s=10) == 42
    with pytest.raises(ValueError, match="no such thing"):
        runtime.call(fail, "no such thing", timeout_s=10)
    assert runtime.call(double, 1, timeout_s=10) == 2, "a submitted task's failure is its caller's"


def test_submitted_coroutines_run_side_by_side(runtime: Runtime) -> None:
    async def meet(mine: asyncio.Event, other: asyncio.Event) -> str:
        mine.set()
        await other.wait()
        return threading.current_thread().name

    a, b = asyncio.Event(), asyncio.Event()
    futures = [runtime.submit(meet, a, b), runtime.submit(meet, b, a)]
    assert [future.result(10) for future in futures] == ["runnel-io", "runnel-io"]


def test_a_call_past_its_deadline_is_cancelled_and_named(runtime: Runtime) -> None:
    ended = threading.Event()

    async def patient() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    with pytest.raises(TimeoutError, match=r"patient did not finish within 0\.01 s"):
        runtime.call(patient, timeout_s=0.01)
    assert ended.wait(10)


def test_a_stop_that_is_heeded_ends_one_call_when_that_has_undone_what_it_began(
    runtime: Runtime,
) -> None:
    stop, undone = threading.Event(), threading.Event()

    async def patient() -> None:
        stop.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.2)
            undone.set()

    runtime.heed(stop)
    with pytest.raises(KeyboardInterrupt):
        runtime.call(patient, timeout_s=60)
    assert undone.is_set()
    assert runtime.call(double, 21, timeout_s=10) == 42, "closing in order"


def test_a_timeout_of_the_coroutine_itself_is_not_renamed(runtime: Runtime) -> None:
    async def inner() -> None:
        raise TimeoutError("the donor did not answer")

    with pytest.raises(TimeoutError, match="the donor did not answer"):
        runtime.call(inner, timeout_s=10)


def test_a_blocked_loop_is_named_as_such() -> None:
    gate = threading.Event()

    async def hog() -> None:
        gate.wait(30)

    with Runtime(grace_s=0.05) as runtime:
        with pytest.raises(TimeoutError, match="the I/O thread is blocked"):
            runtime.call(hog, timeout_s=0.01)
        gate.set()


def test_cancelling_the_future_cancels_the_coroutine(runtime: Runtime) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def patient() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    future = runtime.submit(patient)
    assert begun.wait(10)
    assert future.cancel()
    assert ended.wait(10)


def test_the_io_thread_may_not_wait_for_itself(runtime: Runtime) -> None:
    async def call_from_inside() -> None:
        runtime.call(double, 1, timeout_s=1)

    async def close_from_inside() -> None:
        runtime.close()

    for function in (call_from_inside, close_from_inside):
        with pytest.raises(BugError, match="itself"):
            runtime.call(function, timeout_s=10)


def test_jobs_run_on_threads_with_plain_names(runtime: Runtime) -> None:
    async def names() -> list[str]:
        return [
            await runtime.codec(lambda: threading.current_thread().name),
            await runtime.disk(lambda: threading.current_thread().name),
        ]

    assert runtime.call(names, timeout_s=10) == ["runnel-codec-0", "runnel-disk-0"]


def test_disk_jobs_run_one_after_the_other_in_order(runtime: Runtime) -> None:
    order: list[int] = []

    async def write_all() -> None:
        await asyncio.gather(*(runtime.disk(order.append, number) for number in range(50)))

    runtime.call(write_all, timeout_s=10)
    assert order == list(range(50))


def test_an_error_of_a_job_reaches_the_coroutine(runtime: Runtime) -> None:
    async def divide() -> float:
        return await runtime.codec(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        runtime.call(divide, timeout_s=10)


def test_a_closed_runtime_refuses_and_closing_again_is_harmless() -> None:
    runtime = Runtime()
    with pytest.raises(RuntimeClosedError, match="new"):
        runtime.call(double, 1, timeout_s=1)
    runtime.start()
    runtime.close()
    runtime.close()
    for use in (lambda: runtime.submit(double, 1), lambda: runtime.own(forever), runtime.start):
        with pytest.raises(RuntimeClosedError, match="closed"):
            use()
    never_started = Runtime()
    never_started.close()
    with pytest.raises(RuntimeClosedError, match="closed"):
        never_started.start()


def test_close_cancels_everything_that_waits(runtime: Runtime) -> None:
    futures = [runtime.submit(forever) for _ in range(50)]
    runtime.close()
    assert all(
        isinstance(future.exception(0), concurrent.futures.CancelledError) for future in futures
    )


def test_a_call_in_another_thread_ends_when_the_runtime_closes(runtime: Runtime) -> None:
    begun = threading.Event()
    errors: list[BaseException] = []

    def caller() -> None:
        try:
            runtime.call(forever, begun, timeout_s=100)
        except RuntimeClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    assert begun.wait(10)
    runtime.close()
    thread.join(10)
    assert "closed while forever ran" in str(errors[0])


def test_cleanup_may_await_while_closing(runtime: Runtime) -> None:
    begun, said = threading.Event(), threading.Event()

    async def polite() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            said.set()

    runtime.own(polite)
    assert begun.wait(10)
    runtime.close()
    assert said.is_set()


def test_a_task_that_ignores_cancellation_is_named_and_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, released = threading.Event(), False

    async def stubborn() -> None:
        begun.set()
        while not released:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    runtime = Runtime(grace_s=0.05, loop_factory=asyncio.new_event_loop).start()
    runtime.own(stubborn)
    assert begun.wait(10)
    runtime.close()
    assert "stubborn ignored its cancellation" in caplog.text
    assert "runnel-io" not in threads()
    released = True


def test_a_job_that_does_not_end_is_named(caplog: pytest.LogCaptureFixture) -> None:
    begun, gate = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        gate.wait(30)

    async def run(runtime: Runtime) -> None:
        await runtime.codec(job)

    runtime = Runtime(grace_s=0.05).start()
    runtime.submit(run, runtime)
    assert begun.wait(10)
    runtime.close()
    assert "a job on runnel-codec-0 did not end" in caplog.text
    gate.set()


def test_a_failing_owned_task_ends_the_runtime_with_its_cause(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = runtime.submit(forever)
    runtime.own(fail, "the directory is gone")
    error = waiting.exception(10)
    assert isinstance(error, ValueError)
    assert runtime.failure is error
    assert "fail failed and ends this peer" in caplog.text
    for _ in range(2):
        with pytest.raises(ValueError, match="the directory is gone"):
            runtime.call(double, 1, timeout_s=1)
    runtime.close()
    with pytest.raises(ValueError, match="the directory is gone"):
        runtime.call(double, 1, timeout_s=1)


def test_an_owned_task_that_returns_or_is_cancelled_ends_nothing(runtime: Runtime) -> None:
    done = threading.Event()

    async def brief() -> None:
        done.set()

    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    runtime.own(cancel_itself)
    runtime.own(brief)
    assert done.wait(10)
    assert runtime.call(double, 2, timeout_s=10) == 4
    assert runtime.failure is None


def test_a_loop_that_cannot_be_made_is_an_error_of_start() -> None:
    def broken() -> asyncio.AbstractEventLoop:
        raise OSError("too many open files")

    runtime = Runtime(loop_factory=broken)
    with pytest.raises(OSError, match="too many open files"):
        runtime.start()
    runtime.close()


def test_it_works_inside_a_running_loop_like_a_notebook() -> None:
    async def cell() -> int:
        with Runtime() as runtime:
            return runtime.call(double, 21, timeout_s=10)

    with asyncio.Runner() as notebook:
        assert notebook.run(cell()) == 42
        assert notebook.run(double(1)) == 2, "the notebook's own loop still works"


def test_signal_handlers_are_not_touched(runtime: Runtime) -> None:
    before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    runtime.call(double, 1, timeout_s=10)
    assert (signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)) == before


def test_fifty_cycles_leak_no_thread_and_no_file() -> None:
    def cycle() -> None:
        with Runtime(codec_threads=2) as runtime:

            async def work() -> None:
                await runtime.codec(int)
                await runtime.disk(int)

            runtime.own(forever)
            runtime.call(work, timeout_s=10)

    cycle()
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(50):
        cycle()
    assert threads() == set()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_after_a_fork_the_child_is_refused_with_a_reason() -> None:
    script = """
import asyncio, os, sys, warnings
warnings.simplefilter("ignore")
from runnel.node.runtime import Runtime, RuntimeClosedError
runtime = Runtime().start()
child = os.fork()
if child == 0:
    try:
        runtime.call(asyncio.sleep, 0, timeout_s=1)
    except RuntimeClosedError as error:
        runtime.close()
        os.write(1, str(error).encode())
    os._exit(0)
os.waitpid(child, 0)
runtime.close()
"""
    root = Path(runtime_module.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert "made before a fork" in done.stdout, done.stderr


def test_without_uvloop_the_standard_loop_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)

    async def kind() -> str:
        return type(asyncio.get_running_loop()).__module__

    with Runtime() as runtime:
        assert runtime.call(kind, timeout_s=10).startswith("asyncio")


@pytest.mark.parametrize("finish", ["close", "fail"])
def test_no_future_stays_open_when_submits_race_with_the_end(
    finish: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    runtime = Runtime(grace_s=0.5).start()
    futures: list[concurrent.futures.Future[None]] = []
    go = threading.Event()

    def submitter() -> None:
        go.set()
        while True:
            try:
                futures.append(runtime.submit(forever))
            except (RuntimeClosedError, ValueError):
                return

    thread = threading.Thread(target=submitter)
    thread.start()
    assert go.wait(10)
    end: Callable[[], None] = (
        runtime.close if finish == "close" else lambda: runtime.own(fail, "end")
    )
    end()
    thread.join(20)
    runtime.close()
    assert not concurrent.futures.wait(futures, timeout=20).not_done
