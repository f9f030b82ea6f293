"""Who is asked for a run's state: who answers soon, and members that the chain names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from runnel.dht.memory import Link, MemoryNetwork, MemoryTransport
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import NetworkError, StorageError
from runnel.node import joining
from runnel.node.events import StateFetched
from runnel.node.joining import Source, find_holders
from runnel.node.run_service import RECORDS, RunService
from runnel.protocols import Stream
from runnel.types import PeerId
from tests.support.members import PEERS, RUN, at_once
from tests.support.states import GENESIS, STRANGER, grown, state_of

GUEST = PEERS[7]
MEMBERS = GENESIS.view
RECORDS_TOLD = 5


class Swarm:
    """Members that tell the records of a chain, some of them late or never, and who asks them."""

    def __init__(self, *, silent: Sequence[PeerId] = (), latency_s: float = 0.001) -> None:
        self.network = MemoryNetwork(1, default_link=Link(latency_s=latency_s))
        self.silent = silent
        self.guest = MemoryTransport(self.network, GUEST)
        self.state = state_of(me=GUEST)

    async def __aenter__(self) -> Swarm:
        chain = grown(state_of(), RECORDS_TOLD).chain
        self.transports = [self.guest]
        for peer in (*MEMBERS, STRANGER):
            transport = MemoryTransport(self.network, peer)
            self.transports.append(transport)
            if peer in self.silent:
                await transport.serve("run", self._say_nothing)
                continue
            answers = {RECORDS: lambda names: joining.records_answer(chain, RUN, names)}
            await RunService(transport, RUN, answers, job=at_once).serve()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for transport in self.transports:
            await transport.aclose()

    async def find(self, *donors: PeerId) -> set[PeerId]:
        """Whoever may be asked for the state."""
        return set(await find_holders(Source(self.guest, donors, RUN), self.state))

    async def _say_nothing(self, stream: Stream) -> None:
        await asyncio.sleep(3600)


def test_members_that_nobody_named_are_found_in_the_chain() -> None:
    async def main() -> None:
        async with Swarm() as swarm:
            assert await swarm.find(MEMBERS[0]) == set(MEMBERS)
            assert len(swarm.state.target or ()) == RECORDS_TOLD + 1

    run_virtual(main)


def test_where_enough_told_the_chain_nobody_else_is_asked() -> None:
    async def main() -> None:
        async with Swarm() as swarm:
            donors = (STRANGER, MEMBERS[0], MEMBERS[1])
            assert await swarm.find(*donors) == set(donors)

    run_virtual(main)


def test_a_full_disk_is_told_of_as_that_and_not_as_members_that_are_not_there() -> None:
    def full() -> None:
        raise StorageError("cannot write the log: No space left on device")

    async def main() -> None:
        async with Swarm() as swarm:
            with pytest.raises(StorageError, match="No space"):
                await find_holders(Source(swarm.guest, MEMBERS, RUN, told=full), swarm.state)

    run_virtual(main)


@pytest.mark.parametrize(("latency_s", "held_up_s"), [(0.001, 0.3), (0.02, 1.1), (0.5, 1.1)])
def test_one_that_says_nothing_holds_a_newcomer_up_for_a_moment_only(
    latency_s: float, held_up_s: float
) -> None:
    async def main(silent: tuple[PeerId, ...]) -> float:
        async with Swarm(silent=silent, latency_s=latency_s) as swarm:
            found = await swarm.find(STRANGER, *MEMBERS)
            assert found == {STRANGER, *MEMBERS} - set(silent)
            return asyncio.get_running_loop().time()

    assert run_virtual(lambda: main((STRANGER,))) < run_virtual(lambda: main(())) + held_up_s


def test_members_that_are_gone_are_no_reason_to_fail() -> None:
    async def main() -> None:
        async with Swarm(silent=MEMBERS[1:]) as swarm:
            assert await swarm.find(MEMBERS[0]) == {MEMBERS[0]}

    run_virtual(main)


def test_a_run_that_nobody_tells_of_is_an_error() -> None:
    async def main() -> None:
        async with Swarm(silent=[*MEMBERS, STRANGER]) as swarm:
            with pytest.raises(NetworkError, match="no member told"):
                await swarm.find(*MEMBERS)

    run_virtual(main)


def test_the_event_of_a_fetched_state_says_who_gave_most() -> None:
    given = {peer: 1_000_000 * size for size, peer in enumerate("abcde", 1)}
    event = StateFetched(
        unix_s=0.0,
        round=3,
        size_bytes=15_000_000,
        seconds=0.4,
        donors=tuple(given),
        bytes_by_donor=given,
    )
    said = event.diary() or ""
    assert "15 MB from 5 peers (e 5 MB, d 4 MB, c 3 MB, b 2 MB, ...) in 0.4 s" in said
