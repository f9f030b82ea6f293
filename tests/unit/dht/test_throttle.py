"""A cap on what is sent: never exceeded in any window, used to its limit, votes before payloads."""

from __future__ import annotations

import asyncio
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.identity import null_peer_id
from runnel.dht.memory import MemoryNetwork, MemoryTransport
from runnel.dht.rates import Bucket
from runnel.dht.throttle import Throttle
from runnel.dht.virtual_loop import run_virtual
from runnel.protocols import Stream
from tests.support.uplink import Uplink

KBIT = 1e3
ME, OTHER = null_peer_id(0), null_peer_id(1)


@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.floats(0.1, 10)),  # a pause, an amount
        min_size=1,
        max_size=60,
    ),
    st.floats(0.5, 100),
)
def test_in_no_window_leaves_more_than_the_rate_and_a_burst(
    wanted: list[tuple[float, float]], per_s: float
) -> None:
    bucket, burst, now, left = Bucket(per_s, 10.0), 10.0, 0.0, list[tuple[float, float]]()
    for pause, amount in wanted:
        now = bucket.due(amount, now + pause)
        bucket.take(amount, now)
        left.append((now, amount))
    sums = [0.0, *accumulate(amount for _, amount in left)]
    for i, (begins, _) in enumerate(left):
        for j in range(i, len(left)):
            window_s = left[j][0] - begins
            assert sums[j + 1] - sums[i] <= per_s * window_s + burst + 1e-6


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=60), st.floats(0.5, 100))
def test_whoever_always_wants_more_gets_the_whole_rate(amounts: list[float], per_s: float) -> None:
    bucket, now = Bucket(per_s, 10.0), 0.0
    for amount in amounts:
        now = bucket.due(amount, now)
        bucket.take(amount, now)
    assert now == pytest.approx(max(0.0, (sum(amounts) - 10.0) / per_s))


# -- streams


async def two(bits_s: float) -> tuple[MemoryTransport, MemoryTransport]:
    network = MemoryNetwork(seed=1)
    us, them = MemoryTransport(network, ME, Throttle(bits_s)), MemoryTransport(network, OTHER)

    async def take(stream: Stream) -> None:
        deadline = asyncio.get_running_loop().time() + 1000
        while True:
            await stream.receive(max_bytes=1 << 24, deadline=deadline)

    await them.serve("any", take)
    return us, them


async def send(us: MemoryTransport, size: int, count: int = 1) -> float:
    """Messages of so many bytes; when the last one was acknowledged."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 1000
    stream = await us.open(OTHER, "any", deadline=deadline)
    for _ in range(count):
        await stream.send(bytes(size), deadline=deadline)
    stream.abort()
    return loop.time()


@pytest.mark.parametrize("bits_s", [64 * KBIT, 500 * KBIT, 20_000 * KBIT])
def test_all_streams_together_keep_to_the_cap_and_use_it(bits_s: float) -> None:
    async def main() -> None:
        us, them = await two(bits_s)
        uplink, size = Uplink(us), int(bits_s / 8 * 4)  # four seconds' worth each
        async with asyncio.timeout(1000), asyncio.TaskGroup() as group:
            ends = [group.create_task(send(us, size)) for _ in range(3)]
        took_s = max(end.result() for end in ends)
        assert uplink.excess(bits_s) <= us.throttle.burst_bytes
        assert 12 <= took_s <= 13, "its headers on the way count, and nothing is left unused"
        await us.aclose()
        await them.aclose()

    run_virtual(main)


def test_votes_do_not_wait_behind_payloads() -> None:
    async def main() -> None:
        us, them = await two(500 * KBIT)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(1000), asyncio.TaskGroup() as group:
            bulk = [group.create_task(send(us, 1_000_000)) for _ in range(4)]
            await asyncio.sleep(5)
            began = loop.time()
            await send(us, 300, count=10)
            assert loop.time() - began < 1.5
            assert not any(task.done() for task in bulk)
        await us.aclose()
        await them.aclose()

    run_virtual(main)


def test_who_is_cancelled_leaves_the_way_to_the_others() -> None:
    async def main() -> None:
        us, them = await two(500 * KBIT)
        async with asyncio.timeout(1000), asyncio.TaskGroup() as group:
            given_up = group.create_task(send(us, 10_000_000))
            other = group.create_task(send(us, 62_500))
            await asyncio.sleep(1)
            given_up.cancel()
        assert other.result() < 3
        await us.aclose()
        await them.aclose()

    run_virtual(main)
