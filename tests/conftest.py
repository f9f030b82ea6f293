"""What every test runs under: a leak check, hypothesis profiles, and accelerators only where there are."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Two files of tests run beside each other: a second thread of torch would spin beside them, and do nothing.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

# Shared machines are slow at times: no test may fail for its speed.
settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# A suite that a script started in the background inherits SIGINT ignored, and so would all its peers.
signal.signal(signal.SIGINT, signal.default_int_handler)

LEAK_GRACE_S = 5.0
"""How long a test's threads, tasks and children may take to go after it has returned."""

DESCRIPTORS, TASKS = "/proc/self/fd", "/proc/self/task"
SYSTEM = ("/dev/", "/proc/", "/sys/", "/memfd:")
"""What libraries keep open: devices, and what the system says of itself."""

POOLS = ("pydevd", "numba", "tqdm", "ThreadPoolExecutor-torch", "raylet", "torch", "Trio thread")
"""Names of threads that libraries start once and keep, or for ten idle seconds."""


@pytest.fixture(scope="session", autouse=True)
def opened_once() -> None:
    """What uvloop's library opens with the first loop, and keeps, is no test's leak."""
    uvloop = importlib.util.find_spec("uvloop") and importlib.import_module("uvloop")
    if uvloop:
        uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread, a child process, an asyncio task, a file, socket or pipe behind."""
    threads, children, tasks = set(threading.enumerate()), _children(), _pending_tasks()
    opened = _open_things()
    yield
    leaks = {
        "threads": lambda: sorted(
            t.name for t in set(threading.enumerate()) - threads if not t.name.startswith(POOLS)
        ),
        "child processes": lambda: sorted(
            f"{name} (pid {pid})" for pid, name in _children().items() if pid not in children
        ),
        "asyncio tasks": lambda: _begun_since(tasks),
        "open files, sockets or pipes": lambda: _opened_since(opened),
    }
    for what, remaining in leaks.items():
        left = _after_grace(remaining)
        if left:
            pytest.fail(f"{request.node.nodeid} left {what} behind: {', '.join(left)}")


def _after_grace(remaining: Callable[[], list[str]]) -> list[str]:
    """What is still there after the grace time, asked often: usually nothing at once."""
    until = time.perf_counter() + LEAK_GRACE_S
    left = remaining()
    while left and time.perf_counter() < until:
        time.sleep(0.02)
        left = remaining()
    return left


def _children() -> dict[int, str]:
    """Living processes that this one started, also through others; zombies of ours count."""
    if not _has_children():
        return {}
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            found[child.pid] = child.name()
        except psutil.NoSuchProcess:
            continue
    return found


def _has_children() -> bool:
    """Whether there is any: Linux tells at once, and most tests start none."""
    try:
        return any(map(_children_of, os.listdir(TASKS)))
    except OSError:  # another system, or a thread that ended just now
        return True


def _children_of(task: str) -> bytes:
    with open(f"{TASKS}/{task}/children", "rb", buffering=0) as file:
        return file.read(1)


def _opened_since(before: set[tuple[int, str]]) -> list[str]:
    """Files, sockets and pipes that are open now and were not; what nobody holds is no leak."""
    opened = _open_things() - before
    if opened:
        gc.collect()
        opened = _open_things() - before
    return sorted(f"{target} (descriptor {number})" for number, target in opened)


def _open_things() -> set[tuple[int, str]]:
    """Descriptors of this process and what they are of; Linux tells, elsewhere nothing is known."""
    found = set()
    try:
        numbers = os.listdir(DESCRIPTORS)
    except OSError:  # another system
        return set()
    for number in numbers:
        try:
            target = os.readlink(f"{DESCRIPTORS}/{number}")
        except OSError:  # the listing's own, or one that closed just now
            continue
        if target.startswith(("socket:", "pipe:", "/")) and not target.startswith(SYSTEM):
            found.add((int(number), target))
    return found


def _begun_since(before: set[asyncio.Task[object]]) -> list[str]:
    """Tasks that are pending now and were not; a cancelled one that nobody holds is no leak."""
    if _pending_tasks() - before:
        gc.collect()
    return sorted(map(repr, _pending_tasks() - before))


def _pending_tasks() -> set[asyncio.Task[object]]:
    """Tasks of any loop that are neither done nor collected."""
    return {task for task in _known_tasks() if not task.done()}


def _known_tasks() -> list[asyncio.Task[object]]:
    # all_tasks() wants a running loop; the registry behind it knows them all. Python 3.12 renamed it.
    registry = getattr(asyncio.tasks, "_scheduled_tasks", None) or asyncio.tasks._all_tasks  # type: ignore[attr-defined]
    return list(registry)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need an accelerator where torch sees none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no accelerator"))


def pytest_collection_finish() -> None:
    """Lets torch's loggers pass on to the root what they log.

    To each that does not, pytest adds handlers at every test and takes them off again: as long as a short test.
    """
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True
