from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from runnel.dht.identity import null_peer_id
from runnel.dht.memory import (
    Cut,
    Heal,
    Kill,
    Link,
    MemoryDirectory,
    MemoryNetwork,
    MemoryTransport,
    Partition,
    Relink,
)
from runnel.dht.memory_stream import MemoryByteStream
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import BugError, NetworkError, PeerError
from runnel.protocols import Stream

A, B, C = (null_peer_id(number) for number in range(3))
FOREVER = 1e6
MBIT = 1e6


def now() -> float:
    return asyncio.get_running_loop().time()


async def take_all(stream: Stream) -> None:
    while True:
        await stream.receive(max_bytes=1 << 26, deadline=FOREVER)


async def swarm(network: MemoryNetwork, *peers: Any) -> list[MemoryTransport]:
    transports = [MemoryTransport(network, peer) for peer in peers]
    for transport in transports:
        await transport.serve("take", take_all)
    return transports


def virtually(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def then_close() -> None:
        await main()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run_virtual(then_close, limit_s=100_000)


def sent_in_s(size: int, *, links: dict[Any, Link]) -> float:
    took: list[float] = []

    async def main() -> None:
        a, _ = await swarm(MemoryNetwork(0, links=links), A, B)
        stream = await a.open(B, "take", deadline=FOREVER)
        start = now()
        await stream.send(bytes(size), deadline=FOREVER)
        took.append(now() - start)

    virtually(main)
    return took[0]


def test_a_free_network_takes_no_time() -> None:
    assert sent_in_s(1 << 20, links={}) == 0


def test_latency_counts_once_each_way() -> None:
    links = {A: Link(latency_s=0.1), B: Link(latency_s=0.02)}
    assert sent_in_s(100, links=links) == pytest.approx(0.24)


@pytest.mark.parametrize(
    "links",
    [
        {A: Link(up_bits_s=8 * MBIT)},
        {B: Link(down_bits_s=8 * MBIT)},
        {A: Link(up_bits_s=8 * MBIT), B: Link(down_bits_s=8 * MBIT)},
        {A: Link(up_bits_s=80 * MBIT, down_bits_s=1), B: Link(down_bits_s=8 * MBIT, up_bits_s=1e9)},
    ],
)
def test_the_narrowest_link_sets_the_pace(links: dict[Any, Link]) -> None:
    if A in links and links[A].down_bits_s == 1:
        links[A] = Link(up_bits_s=80 * MBIT, down_bits_s=MBIT)  # only answers take this way
    assert sent_in_s(10_000_000, links=links) == pytest.approx(10.0, rel=0.03)


def test_an_uplink_is_shared_by_all_streams_of_a_peer() -> None:
    async def main() -> None:
        a, *_ = await swarm(MemoryNetwork(0, links={A: Link(up_bits_s=8 * MBIT)}), A, B, C)
        async with asyncio.TaskGroup() as group:
            for peer in (B, C):
                stream = await a.open(peer, "take", deadline=FOREVER)
                group.create_task(stream.send(bytes(1_000_000), deadline=FOREVER))
        assert now() == pytest.approx(2.0, rel=0.01)

    virtually(main)


def test_a_slow_sender_does_not_hold_up_others_to_the_same_receiver() -> None:
    async def main() -> None:
        links = {A: Link(up_bits_s=0.08 * MBIT), B: Link(down_bits_s=8 * MBIT)}
        a, _, c = await swarm(MemoryNetwork(0, links=links), A, B, C)
        slow = await a.open(B, "take", deadline=FOREVER)
        fast = await c.open(B, "take", deadline=FOREVER)
        async with asyncio.TaskGroup() as group:
            group.create_task(slow.send(bytes(1_000_000), deadline=FOREVER))
            await asyncio.sleep(0.01)
            await fast.send(bytes(100_000), deadline=FOREVER)
            assert now() < 0.6
        assert now() == pytest.approx(100, rel=0.05)

    virtually(main)


def test_a_stream_that_nobody_reads_holds_no_more_than_its_window() -> None:
    async def main() -> None:
        async def reads_nothing(stream: Stream) -> None:
            await asyncio.sleep(1000)

        a, b = await swarm(MemoryNetwork(0, window_bytes=1 << 20), A, B)
        await b.serve("nothing", reads_nothing)
        stream = await a.open(B, "nothing", deadline=FOREVER)
        with pytest.raises(TimeoutError):
            await stream.send(bytes(8 << 20), deadline=5)
        assert a.traffic.sent() <= (1 << 20) + (512 << 10)

    virtually(main)


def test_losses_delay_and_breaks_break() -> None:
    assert sent_in_s(1000, links={A: Link(loss=1.0, retransmit_s=0.5)}) == pytest.approx(0.5)

    async def main() -> None:
        a, _ = await swarm(MemoryNetwork(0, links={A: Link(breaks=1.0)}), A, B)
        stream = await a.open(B, "take", deadline=FOREVER)
        with pytest.raises(PeerError) as caught:
            await stream.send(bytes(1000), deadline=FOREVER)
        assert caught.value.reason == "closed"

    virtually(main)


class Raw:
    """A peer that gets the bare streams."""

    def __init__(self, network: MemoryNetwork, peer: Any) -> None:
        self.streams: list[MemoryByteStream] = []
        network.attach(peer, self)

    def accept(self, protocol: str, stream: MemoryByteStream) -> bool:
        self.streams.append(stream)
        return True

    def die(self) -> None:
        self.streams.clear()


async def raw_pair(network: MemoryNetwork) -> tuple[MemoryByteStream, MemoryByteStream]:
    Raw(network, A)
    there = Raw(network, B)
    return await network.connect(A, B, "raw"), there.streams[0]


@pytest.mark.parametrize(("down_bits_s", "expected_s"), [(float("inf"), 5.0), (8e6, 5.25)])
def test_what_is_written_later_never_arrives_earlier(down_bits_s: float, expected_s: float) -> None:
    async def main() -> None:
        network = MemoryNetwork(0, links={B: Link(down_bits_s=down_bits_s)})
        near, far = await raw_pair(network)
        network.relink(A, Link(loss=1.0, retransmit_s=5.0))
        await near.write(bytes(250_000))
        network.relink(A, Link())
        await near.write(b"after it")
        assert await far.read(1 << 20) == bytes(250_000)
        assert now() == pytest.approx(expected_s)
        assert await far.read(5) == b"after"
        assert await far.read(5) == b" it"

    virtually(main)


def test_closing_loses_what_is_under_way_and_keeps_what_has_arrived() -> None:
    async def main() -> None:
        near, far = await raw_pair(MemoryNetwork(0, default_link=Link(latency_s=0.5)))
        await near.write(b"arrived")
        await asyncio.sleep(2)
        await near.write(b"under way")
        await near.aclose()
        await near.aclose()
        assert await far.read(100) == b"arrived"
        assert await far.read(100) == b""
        assert await near.read(100) == b""
        with pytest.raises(BrokenPipeError):
            await near.write(b"late")

    virtually(main)


def test_a_writer_that_waits_for_room_learns_of_the_close() -> None:
    async def main() -> None:
        near, far = await raw_pair(MemoryNetwork(0, window_bytes=10))
        await near.write(b"0123456789")
        loop = asyncio.get_running_loop()
        loop.call_at(3.0, far.abort)
        with pytest.raises(BrokenPipeError):
            await near.write(b"more")
        assert now() == 3.0

    virtually(main)


def test_a_cut_stalls_streams_and_dials_until_it_heals() -> None:
    async def main() -> None:
        network = MemoryNetwork(0, default_link=Link(latency_s=0.01))
        a, _, c = await swarm(network, A, B, C)
        stream = await a.open(B, "take", deadline=FOREVER)
        network.inject(Cut(A, B))
        network.schedule(50.0, Heal())
        with pytest.raises(TimeoutError):
            await a.open(B, "take", deadline=10)
        await (await c.open(B, "take", deadline=FOREVER)).send(b"around", deadline=20)
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.send(bytes(3 << 20), deadline=FOREVER))
            opening = group.create_task(a.open(B, "take", deadline=FOREVER))
            await asyncio.sleep(30)
            assert not opening.done()
        assert now() == pytest.approx(50, abs=1)

    virtually(main)


def test_a_partition_separates_groups_and_the_rest() -> None:
    network = MemoryNetwork(0)
    others = [null_peer_id(number) for number in (7, 8)]
    network.inject(Partition((frozenset({A}), frozenset({B, C}))))
    assert network.separated(A, B)
    assert network.separated(A, others[0])
    assert not network.separated(B, C)
    assert not network.separated(*others)


def test_a_killed_peer_closes_its_streams_and_can_come_back() -> None:
    async def main() -> None:
        network = MemoryNetwork(0, default_link=Link(latency_s=0.01))
        a, b = await swarm(network, A, B)
        stream = await a.open(B, "take", deadline=FOREVER)
        network.schedule(5.0, Kill(B))
        with pytest.raises(PeerError) as caught:
            await stream.receive(max_bytes=10, deadline=FOREVER)
        assert caught.value.reason == "closed"
        assert now() == pytest.approx(5.02)
        with pytest.raises(NetworkError):
            await a.open(B, "take", deadline=FOREVER)
        with pytest.raises(NetworkError):
            await b.open(A, "take", deadline=FOREVER)
        await swarm(network, B)
        await (await a.open(B, "take", deadline=FOREVER)).send(b"again", deadline=FOREVER)

    virtually(main)


def test_a_peer_can_die_in_the_middle_of_a_message() -> None:
    async def main() -> None:
        got: list[Any] = []

        async def take(stream: Stream) -> None:
            try:
                got.append(await stream.receive(max_bytes=1 << 26, deadline=FOREVER))
            except PeerError as error:
                got.append(error.reason)

        network = MemoryNetwork(0, default_link=Link(latency_s=0.01))
        a, b = await swarm(network, A, B)
        await b.serve("half", take)
        stream = await a.open(B, "half", deadline=FOREVER)
        network.inject(Kill(A, after_bytes=500_000))
        with pytest.raises(PeerError):
            await stream.send(bytes(1 << 20), deadline=FOREVER)
        await asyncio.sleep(1)
        assert got == ["closed"]
        assert not network.alive(A)
        assert 0 < b.traffic.received("half") <= 500_000

    virtually(main)


def test_a_link_can_change() -> None:
    async def main() -> None:
        network = MemoryNetwork(0)
        a, _ = await swarm(network, A, B)
        stream = await a.open(B, "take", deadline=FOREVER)
        network.inject(Relink(A, Link(up_bits_s=8 * MBIT)))
        await stream.send(bytes(1_000_000), deadline=FOREVER)
        assert now() == pytest.approx(1.0, rel=0.01)

    virtually(main)


def test_one_peer_has_one_transport() -> None:
    network = MemoryNetwork(0)
    MemoryTransport(network, A)
    with pytest.raises(BugError, match="already"):
        MemoryTransport(network, A)


@pytest.mark.parametrize(
    "link",
    [{"latency_s": -1.0}, {"up_bits_s": 0.0}, {"loss": 1.5}, {"breaks": -0.1}, {"down_bits_s": -1}],
)
def test_links_that_cannot_be_are_refused(link: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Link"):
        Link(**link)


def history(seed: int) -> str:
    """A digest of who received what when, in a swarm with losses, a partition and a crash."""
    log = hashlib.sha256()

    async def main() -> None:
        peers = [null_peer_id(number) for number in range(8)]
        rng = random.Random(seed)
        links = {
            peer: Link(latency_s=rng.uniform(0.01, 0.1), up_bits_s=5e6, down_bits_s=2e7, loss=0.1)
            for peer in peers
        }
        network = MemoryNetwork(seed, links=links)
        network.schedule(20, Partition((frozenset(peers[:4]), frozenset(peers[4:]))))
        network.schedule(40, Heal())
        network.schedule(50, Kill(peers[0]))

        async def note(stream: Stream) -> None:
            message = await stream.receive(max_bytes=1 << 20, deadline=now() + 30)
            log.update(f"{now():.9f} {stream.remote.hex()} {len(message)}".encode())

        async def gossip(transport: MemoryTransport, rng: random.Random) -> None:
            while now() < 80:
                await asyncio.sleep(rng.uniform(0.5, 3))
                peer = rng.choice(peers)
                try:
                    stream = await transport.open(peer, "note", deadline=now() + 5)
                    await stream.send(bytes(rng.randrange(400_000)), deadline=now() + 5)
                    await stream.aclose()
                except (NetworkError, PeerError, TimeoutError) as error:
                    log.update(type(error).__name__.encode())

        transports = [MemoryTransport(network, peer) for peer in peers]
        async with asyncio.TaskGroup() as group:
            for number, transport in enumerate(transports):
                await transport.serve("note", note)
                group.create_task(gossip(transport, random.Random(f"{seed}-{number}")))
        for transport in transports:
            await transport.aclose()

    run_virtual(main, limit_s=1000)
    return log.hexdigest()


def test_equal_seeds_make_equal_histories() -> None:
    assert history(3) == history(3)
    assert history(3) != history(4)


def test_the_directory_finds_what_lives_and_nothing_else() -> None:
    async def main() -> None:
        network = MemoryNetwork(0, default_link=Link(latency_s=0.1))
        await swarm(network, A, B)
        a, b = MemoryDirectory(network, A), MemoryDirectory(network, B)
        assert await a.publish("run", b"at a", ttl_s=10, deadline=FOREVER)
        assert await b.publish("run", b"at b", ttl_s=100, deadline=FOREVER)
        assert await a.lookup("run", deadline=FOREVER) == {A: b"at a", B: b"at b"}
        assert await a.lookup("other", deadline=FOREVER) == {}
        assert await a.publish("run", b"moved", ttl_s=20, deadline=FOREVER)
        network.inject(Cut(A, B))
        assert await b.lookup("run", deadline=FOREVER) == {B: b"at b"}
        network.inject(Heal())
        assert await b.lookup("run", deadline=FOREVER) == {A: b"moved", B: b"at b"}
        await asyncio.sleep(20)
        assert await a.lookup("run", deadline=FOREVER) == {B: b"at b"}
        assert await a.lookup("run", deadline=now() + 0.05) == {}
        assert not await a.publish("run", b"late", ttl_s=20, deadline=now() + 0.05)
        network.inject(Kill(A))
        assert not await a.publish("run", b"dead", ttl_s=20, deadline=FOREVER)
        await a.aclose()

    virtually(main)
