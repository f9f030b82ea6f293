"""Who a directory names as peers of a run: those who are there, not those who left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack
from runnel.errors import NetworkError
from runnel.node.announcer import Announcer, directory_key, find_peers
from runnel.types import PeerId
from tests.support.members import PEERS

RUN = bytes(range(32))
ME, OTHER = PEERS[:2]
ADDRESS = "/ip4/127.0.0.1/tcp/4001"


class Shared:
    """What all peers of a test see: the newest value of each of them."""

    def __init__(self) -> None:
        self.values: dict[str, dict[PeerId, bytes]] = {}
        self.works = True
        self.takes_s = 0.0


class Network:
    """One peer's network as far as announcing needs it, and its directory."""

    def __init__(self, shared: Shared, me: PeerId) -> None:
        self._shared, self._me = shared, me
        self.learned: dict[PeerId, list[str]] = {}

    @property
    def directory(self) -> Any:
        return self

    def addresses(self) -> list[str]:
        return [ADDRESS]

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        self.learned[peer] = list(addresses)

    async def publish(self, key: str, value: bytes, *, ttl_s: float, deadline: float) -> bool:
        del ttl_s, deadline
        await asyncio.sleep(self._shared.takes_s)
        if not self._shared.works:
            raise NetworkError("nobody holds it")
        self._shared.values.setdefault(key, {})[self._me] = value
        return True

    async def lookup(self, key: str, *, deadline: float) -> Mapping[PeerId, bytes]:
        del deadline
        return dict(self._shared.values.get(key, {}))


async def found_by(network: Network) -> list[PeerId]:
    deadline = asyncio.get_running_loop().time() + 5
    return await find_peers(network, RUN, deadline=deadline)  # type: ignore[arg-type]


def announcer(network: Network) -> Announcer:
    return Announcer(network, RUN, lambda _: None)  # type: ignore[arg-type]


def test_whoever_leaves_while_it_is_announced_for_the_first_time_says_so() -> None:
    async def test() -> None:
        shared = Shared()
        mine, other = Network(shared, ME), Network(shared, OTHER)
        leaver = announcer(mine)
        async with asyncio.TaskGroup() as group:
            shared.takes_s = 5.0
            running = group.create_task(leaver.run())
            await asyncio.sleep(1)
            await leaver.withdraw()
            await asyncio.sleep(200)
            assert await found_by(other) == []
            running.cancel()

    run_virtual(test)


def test_whoever_left_is_not_looked_for() -> None:
    async def test() -> None:
        shared = Shared()
        mine, other = Network(shared, ME), Network(shared, OTHER)
        leaver = announcer(mine)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(leaver.run())
            await asyncio.sleep(1)
            assert await found_by(other) == [ME]
            assert other.learned == {ME: [ADDRESS]}
            await leaver.withdraw()
            assert await found_by(other) == []
            await asyncio.sleep(200)  # nothing that was under way says otherwise
            assert await found_by(other) == []
            running.cancel()

    run_virtual(test)


def test_whoever_never_said_that_it_was_there_says_nothing_in_the_end() -> None:
    async def test() -> None:
        shared = Shared()
        await announcer(Network(shared, ME)).withdraw()
        assert shared.values == {}

    run_virtual(test)


def test_a_directory_that_fails_keeps_nobody_from_leaving() -> None:
    async def test() -> None:
        shared = Shared()
        leaver = announcer(Network(shared, ME))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(leaver.run())
            await asyncio.sleep(1)
            before = dict(shared.values[directory_key(RUN)])
            shared.works = False
            await leaver.withdraw()
            assert shared.values[directory_key(RUN)] == before
            running.cancel()

    run_virtual(test)


def test_a_malformed_record_hides_nobody_else() -> None:
    async def test() -> None:
        shared = Shared()
        shared.values[directory_key(RUN)] = {ME: b"\xc1", OTHER: pack([ADDRESS])}
        assert await found_by(Network(shared, ME)) == [OTHER]

    run_virtual(test)
