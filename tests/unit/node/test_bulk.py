"""Results from holders that have them, lack them, keep them back or are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from runnel.dht.identity import null_peer_id
from runnel.dht.memory import MemoryTransport
from runnel.dht.memory_network import Link, MemoryNetwork
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import NetworkError
from runnel.hashing import digest
from runnel.node.bulk import Bulk, GoneError, Wanted
from runnel.types import Digest, PeerId

DATA = bytes(range(256)) * 64
ROOT = digest(DATA)
ME = null_peer_id(0)
USUAL_S, PATIENCE_S = 1.0, 6.0

Answer = Callable[[], Coroutine[Any, Any, bytes | None]]


async def has_it() -> bytes | None:
    return DATA


async def lacks_it() -> bytes | None:
    return None


async def keeps_it_back() -> bytes | None:
    await asyncio.sleep(3600)
    return DATA


async def lies() -> bytes | None:
    return DATA[::-1]


async def ask(*answers: Answer, dead: int = -1) -> tuple[float, bytes]:
    """Asks one holder for each of `answers` in turn; how long it took and what came."""
    network = MemoryNetwork(seed=1, default_link=Link(latency_s=0.01, up_bits_s=1e9))
    holders: list[PeerId] = []
    for index, answer in enumerate(answers, start=1):
        peer = null_peer_id(index)
        await bulk_of(network, peer, answer).serve()
        holders.append(peer)
    if dead >= 0:
        network.kill(holders[dead])
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    found = await bulk_of(network, ME, lacks_it).fetch(
        Wanted(
            root=ROOT,
            holders=holders,
            size_bytes=len(DATA),
            max_bytes=len(DATA),
            usual_s=USUAL_S,
            patience_s=PATIENCE_S,
        )
    )
    return loop.time() - began_s, bytes(found)


def bulk_of(network: MemoryNetwork, peer: PeerId, answer: Answer) -> Bulk:
    return bulk_over(MemoryTransport(network, peer), answer)


def bulk_over(transport: MemoryTransport, answer: Answer) -> Bulk:
    async def take(*_: Any) -> None:
        raise AssertionError("nobody sends slices here")

    async def lookup(_: Digest) -> bytes | None:
        return await answer()

    return Bulk(transport, take=take, limit=lambda _: 0, lookup=lookup)


def test_the_first_holder_is_enough() -> None:
    async def main() -> None:
        took_s, found = await ask(has_it, keeps_it_back)
        assert found == DATA
        assert took_s < USUAL_S

    run_virtual(main)


@pytest.mark.parametrize("first", [lacks_it, lies])
def test_the_next_one_is_asked_at_once_when_one_fails(first: Answer) -> None:
    async def main() -> None:
        took_s, found = await ask(first, first, has_it)
        assert found == DATA
        assert took_s < USUAL_S

    run_virtual(main)


def test_whoever_keeps_a_result_back_costs_one_usual_transfer() -> None:
    async def main() -> None:
        took_s, found = await ask(keeps_it_back, has_it)
        assert found == DATA
        assert USUAL_S <= took_s < 2 * USUAL_S

    run_virtual(main)


def test_several_who_keep_it_back_cost_their_patience_two_at_a_time() -> None:
    async def main() -> None:
        took_s, found = await ask(keeps_it_back, keeps_it_back, keeps_it_back, has_it)
        assert found == DATA
        assert took_s < 2 * PATIENCE_S

    run_virtual(main)


def test_a_dead_holder_costs_no_more_than_one_that_keeps_it_back() -> None:
    async def main() -> None:
        took_s, found = await ask(has_it, has_it, dead=0)
        assert found == DATA
        assert took_s < 2 * USUAL_S

    run_virtual(main)


BIG = DATA * 128
"""Two megabytes, which travel in pieces."""


async def fetch_over(*holding: Link) -> tuple[float, list[int]]:
    """Fetches `BIG` from holders with such links; how long it took, and what each holder sent."""
    network = MemoryNetwork(seed=1, default_link=Link(latency_s=0.01))
    givers = []

    async def has_big() -> bytes | None:
        return BIG

    for index, link in enumerate(holding, start=1):
        network.relink(null_peer_id(index), link)
        transport = MemoryTransport(network, null_peer_id(index))
        await bulk_over(transport, has_big).serve()
        givers.append(transport)
    wanted = Wanted(
        root=digest(BIG),
        holders=[giver.local_id for giver in givers],
        size_bytes=len(BIG),
        max_bytes=len(BIG),
        usual_s=USUAL_S,
        patience_s=PATIENCE_S,
    )
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    found = await bulk_over(MemoryTransport(network, ME), lacks_it).fetch(wanted)
    assert found == BIG
    return loop.time() - began_s, [giver.traffic.sent("result") for giver in givers]


def test_a_slow_link_that_will_be_done_is_not_burdened_twice() -> None:
    async def main() -> None:
        took_s, sent = await fetch_over(Link(up_bits_s=4e6), Link())  # 4.2 of 6 seconds
        assert took_s > 4
        assert sent[1] == 0

    run_virtual(main)


def test_one_that_trickles_is_like_one_that_keeps_it_back() -> None:
    async def main() -> None:
        took_s, _ = await fetch_over(Link(up_bits_s=1e6), Link())  # 17 of 6 seconds
        assert took_s < 4 * USUAL_S

    run_virtual(main)


def test_what_nobody_has_is_told_apart_from_what_nobody_gave() -> None:
    async def main() -> None:
        with pytest.raises(GoneError, match="none has it"):
            await ask(lacks_it, lacks_it)
        with pytest.raises(NetworkError, match="no holder gave"):
            await ask(lacks_it, keeps_it_back)

    run_virtual(main)
