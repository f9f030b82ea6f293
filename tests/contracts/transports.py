"""The transports that the contract suite runs against: add a `TransportKind` to `KINDS`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from runnel.dht import Link, MemoryNetwork, MemoryTransport, null_peer_id, run_virtual
from runnel.protocols import Transport
from tests.support.daemons import DaemonPair

LIBP2P_TESTS_VARIABLE = "RUNNEL_TESTS_OF_LIBP2P"
"""Set by tests/swarm/test_libp2p.py for the processes in which libp2p for Python is tested."""

Test = Callable[[], Coroutine[Any, Any, None]]
Pair = tuple[Transport, Transport]


@dataclass(frozen=True, kw_only=True)
class TransportKind:
    """How to test one implementation.

    Attributes:
        run: runs one test's coroutine to its end on a loop of the right kind.
        pair: two transports that can reach each other; closes them at the end.
        kept: holds what all tests of this kind share.
        marks: pytest's marks of all tests of this kind.
    """

    name: str
    run: Callable[[Test], None]
    pair: Callable[[], contextlib.AbstractAsyncContextManager[Pair]]
    kept: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    marks: tuple[pytest.MarkDecorator, ...] = ()


def _new_uvloop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()  # type: ignore[no-any-return]


def run_in_real_time(test: Test) -> None:
    """For implementations with sockets: a plain loop, a minute at most."""

    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    with asyncio.Runner() as runner:
        runner.run(limited())


def run_on_uvloop(test: Test) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    with asyncio.Runner(loop_factory=_new_uvloop) as runner:
        runner.run(limited())


def run_in_virtual_time(test: Test) -> None:
    run_virtual(test, limit_s=600)


def _memory_pair(
    link: Link, *, window_bytes: int = 1 << 20
) -> Callable[[], contextlib.AbstractAsyncContextManager[Pair]]:
    @contextlib.asynccontextmanager
    async def pair() -> AsyncIterator[Pair]:
        network = MemoryNetwork(seed=1, default_link=link, window_bytes=window_bytes)
        first = MemoryTransport(network, null_peer_id(1))
        second = MemoryTransport(network, null_peer_id(2))
        try:
            yield first, second
        finally:
            await first.aclose()
            await second.aclose()

    return pair


def _daemons(name: str, pair: DaemonPair) -> TransportKind:
    return TransportKind(
        name=name,
        run=pair.run,
        pair=pair.transports,
        kept=pair.running,
        marks=(pytest.mark.swarm,),
    )


HOME = Link(latency_s=0.03, up_bits_s=20e6, down_bits_s=100e6, loss=0.02)

KINDS: tuple[TransportKind, ...] = (
    TransportKind(name="memory", run=run_in_virtual_time, pair=_memory_pair(Link())),
    TransportKind(name="memory-home-links", run=run_in_virtual_time, pair=_memory_pair(HOME)),
    TransportKind(
        name="memory-narrow-window",
        run=run_in_virtual_time,
        pair=_memory_pair(Link(latency_s=0.01), window_bytes=5_000),
    ),
    _daemons("daemon", DaemonPair()),
    _daemons("daemon-uvloop", DaemonPair(_new_uvloop)),
)


if os.environ.get(LIBP2P_TESTS_VARIABLE):  # in a process of its own: never beside hivemind
    from tests.support.libp2p_hosts import libp2p_pair

    KINDS += (
        TransportKind(
            name="libp2p", run=run_in_real_time, pair=libp2p_pair, marks=(pytest.mark.swarm,)
        ),
        TransportKind(
            name="libp2p-uvloop", run=run_on_uvloop, pair=libp2p_pair, marks=(pytest.mark.swarm,)
        ),
    )


async def until(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Waits for a condition that other tasks bring about."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
