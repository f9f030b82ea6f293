"""Meeting behind routers: who is answered what, and that nobody is made to dial strangers' targets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from runnel.dht import punching
from runnel.dht.daemon_control import Connection
from runnel.dht.identity import null_peer_id
from runnel.dht.memory import MemoryNetwork, MemoryTransport
from runnel.dht.punching import PUNCH_PROTOCOL, Endpoint, Puncher
from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.types import PeerId

US, MEMBER, STRANGER, THIRD = (null_peer_id(i) for i in range(4))
SEEN = Connection(MEMBER, "/ip4/11.77.0.9/tcp/4001")


class World:
    """A puncher whose dials are only noted, and whom `THIRD` sees at a public address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network = MemoryNetwork(seed=1)
        self.dialled: list[Endpoint] = []
        self.transports = {peer: MemoryTransport(network, peer) for peer in (US, MEMBER, STRANGER)}
        self.third = MemoryTransport(network, THIRD)
        control: Any = SimpleNamespace(connections=self._connections)
        self.puncher = self._puncher(control, self.transports[US], [THIRD])
        ours = Connection(US, "/ip4/11.77.0.5/tcp/4000")

        async def seen(*, deadline: float) -> list[Connection]:
            del deadline
            return [ours]

        middle: Any = SimpleNamespace(connections=seen)
        self.middle = self._puncher(middle, self.third, [])

        async def dial(port: int, theirs: Endpoint) -> None:
            assert port == 4000
            self.dialled.append(theirs)
            raise OSError("nobody there")

        monkeypatch.setattr(punching, "_connect", dial)

    @staticmethod
    def _puncher(control: Any, transport: MemoryTransport, neighbours: list[PeerId]) -> Puncher:
        return Puncher(
            control,
            transport,
            4000,
            knows=lambda peer: peer != STRANGER,
            neighbours=lambda: neighbours,
        )

    async def _connections(self, *, deadline: float) -> list[Connection]:
        del deadline
        return [SEEN, Connection(STRANGER, "/ip4/11.77.0.8/tcp/1")]

    async def ask(self, peer: PeerId, message: object) -> object:
        deadline = asyncio.get_running_loop().time() + 20
        stream = await self.transports[peer].open(US, PUNCH_PROTOCOL, deadline=deadline)
        try:
            await stream.send(pack(message), deadline=deadline)
            return unpack(
                bytes(await stream.receive(max_bytes=256, deadline=deadline)), max_bytes=256
            )
        finally:
            await stream.aclose()


def run(monkeypatch: pytest.MonkeyPatch, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(monkeypatch)
        await world.puncher.serve()
        await world.middle.serve()
        await test(world)
        for transport in (*world.transports.values(), world.third):
            await transport.aclose()

    run_virtual(main)


def test_a_member_is_told_where_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        assert await world.ask(MEMBER, []) == ["11.77.0.9", 4001]
        assert world.dialled == []

    run(monkeypatch, test)


def test_a_member_is_dialled_where_it_says_and_told_from_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(world: World) -> None:
        assert await world.ask(MEMBER, ["11.77.0.9", 4001]) == ["11.77.0.5", 4000]
        assert world.dialled == [("11.77.0.9", 4001)]

    run(monkeypatch, test)


def test_strangers_make_nobody_dial_and_learn_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        for message in ([], ["11.77.0.9", 4001]):
            with pytest.raises(PeerError):
                await world.ask(STRANGER, message)
        assert world.dialled == []

    run(monkeypatch, test)


@pytest.mark.parametrize(
    "message",
    [["127.0.0.1", 22], ["0.0.0.0", 22], ["224.0.0.1", 22], ["11.77.0.9", 0], ["a", 1], [1], "x"],
)
def test_what_is_no_place_is_refused(monkeypatch: pytest.MonkeyPatch, message: object) -> None:
    async def test(world: World) -> None:
        with pytest.raises(PeerError):
            await world.ask(MEMBER, message)
        assert world.dialled == []

    run(monkeypatch, test)


def test_a_member_makes_us_dial_a_few_times_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for _ in range(20):
            try:
                await world.ask(MEMBER, ["11.77.0.9", 4001])
            except PeerError:
                continue
        assert 4 <= len(world.dialled) <= 4 + (loop.time() - began_s) / 10 < 20

    run(monkeypatch, test)
