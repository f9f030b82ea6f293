"""Circuits on the loopback: two peers that listen nowhere, and one in the middle who carries their bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runnel.dht import relay as relay_module
from runnel.dht.circuits import HOP, MAX_MESSAGE_BYTES, Status, through
from runnel.dht.connections import RefusalError
from runnel.dht.daemon import Daemon, DaemonOptions
from runnel.dht.daemon_messages import decode_fields, encode_fields
from runnel.dht.daemon_transport import HivemindTransport
from runnel.dht.middle import Middle
from runnel.dht.multiaddr import varint
from runnel.dht.outside import Outside
from runnel.dht.relay_rules import STRANGER_BYTES
from runnel.dht.routes import DIRECT, Route
from runnel.errors import NetworkError, PeerError
from runnel.hashing import digest
from runnel.protocols import Stream
from runnel.types import PeerId
from tests.support.daemons import LOOPBACK, address_of, in_s, new_key

pytestmark = pytest.mark.swarm
MIB = 1 << 20
PAYLOAD = bytes(range(256)) * (8 * MIB // 256)
"""Sixty times what daemons carry by default."""


@dataclass
class Node:
    """A daemon, its transport, and its part in the middle."""

    daemon: Daemon
    transport: HivemindTransport
    middle: Middle

    @property
    def id(self) -> PeerId:
        return self.daemon.identity.peer_id

    async def send(self, to: PeerId, payload: bytes = PAYLOAD) -> bytes:
        """What `to` answers to the payload: its digest."""
        stream = await self.transport.open(to, "digest", deadline=in_s(15))
        try:
            await stream.send(payload, deadline=in_s(30))
            return bytes(await stream.receive(max_bytes=32, deadline=in_s(30)))
        finally:
            await stream.aclose()


async def answer(stream: Stream) -> None:
    data = await stream.receive(max_bytes=2 * STRANGER_BYTES, deadline=in_s(30))
    await stream.send(digest(data), deadline=in_s(10))


@contextlib.asynccontextmanager
async def nodes(folder: Path, *, relay: bool = True) -> AsyncIterator[tuple[Node, Node, Node]]:
    """The middle, and two that dial it and listen nowhere. Nobody belongs to anything yet."""
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for name in ("middle", "a", "c"):
            listens = name == "middle"
            options = DaemonOptions(
                identity_path=new_key(folder, name), listen_host=LOOPBACK, dial_out=not listens
            )
            daemon = await Daemon.start(options)
            stack.push_async_callback(daemon.aclose)
            transport = await HivemindTransport.start(daemon)
            stack.push_async_callback(transport.aclose)
            middle = Middle(daemon, transport, listens=listens)
            await middle.serve(relay=relay)
            await transport.serve("digest", answer)
            made.append(Node(daemon, transport, middle))
        first = made[0]
        for node in made[1:]:
            await node.daemon.control.connect(
                first.id, [address_of(first.daemon)], deadline=in_s(10)
            )
        yield made[0], made[1], made[2]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(100):
            await test()

    with asyncio.Runner() as runner:
        runner.run(limited())


def test_peers_that_cannot_meet_exchange_more_than_daemons_carry(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path) as (b, a, c):
            b.middle.belongs({a.id, c.id}.__contains__)
            assert await a.send(c.id) == digest(PAYLOAD)
            assert await c.send(a.id) == digest(PAYLOAD), "and back on the same connection"
            assert await a.middle.look() == {b.id: DIRECT, c.id: Route(b.id)}
            assert await c.middle.look() == {b.id: DIRECT, a.id: Route(b.id)}
            assert b.middle.carried_bytes > 2 * len(PAYLOAD)

    run(test)


def test_who_is_at_the_other_end_is_proved_through_the_middle(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path) as (b, a, c):
            b.middle.belongs({a.id, c.id}.__contains__)
            seen = asyncio.get_running_loop().create_future()

            async def who(stream: Stream) -> None:
                seen.set_result(stream.remote)

            await c.transport.serve("who", who)
            stream = await a.transport.open(c.id, "who", deadline=in_s(15))
            async with asyncio.timeout(10):
                assert await seen == a.id
            await stream.aclose()

    run(test)


def test_a_relay_carries_nothing_for_strangers_and_they_are_told_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path) as (b, a, c):
            await refused(a, c, b)
            assert b.middle.carried_bytes == 0

    run(test)


def test_a_peer_that_does_not_want_to_be_a_relay_is_none(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path, relay=False) as (b, a, c):
            b.middle.belongs({a.id, c.id}.__contains__)
            await refused(a, c, b)

    run(test)


async def refused(a: Node, c: Node, b: Node) -> None:
    with pytest.raises(RefusalError, match=r"(?i)permission|reservation"):
        await a.daemon.control.connect(c.id, [through(b.id)], deadline=in_s(10))
    with pytest.raises((NetworkError, TimeoutError)):
        await a.transport.open(c.id, "digest", deadline=in_s(4))


def test_a_stranger_is_cut_off_when_its_share_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runnel.dht.relay_rules.STRANGER_BYTES", MIB)

    async def test() -> None:
        async with nodes(tmp_path) as (b, a, c):
            b.middle.belongs({c.id}.__contains__)
            assert await a.send(c.id, PAYLOAD[: MIB // 2]) == digest(PAYLOAD[: MIB // 2])
            with pytest.raises((PeerError, NetworkError, TimeoutError)):
                await a.send(c.id, PAYLOAD[: 2 * MIB])
            assert b.middle.carried_bytes <= MIB + relay_module.PIECE_BYTES

    run(test)


def wish(target: bytes) -> bytes:
    """A request for a circuit, as daemons send it."""
    message = encode_fields([(1, 1), (2, encode_fields([(1, target)]))])
    return varint(len(message)) + message


async def asked(node: Node, relay: Node, request: bytes) -> int:
    """The status with which `relay` answers a request of `node`."""
    stream = await node.daemon.control.open_stream(relay.id, HOP, deadline=in_s(10))
    try:
        await stream.write(request)
        answer = decode_fields(await stream.read_sized(max_bytes=MAX_MESSAGE_BYTES))
    finally:
        stream.abort()
    return next(value for number, value in answer if number == 5 and isinstance(value, int))


def test_there_are_no_circuits_through_circuits(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path) as (b, a, c):
            for node in (a, b, c):
                node.middle.belongs(lambda _: True)
            await a.send(c.id, b"x")
            assert await asked(b, c, wish(a.id)) == Status.NO_RESERVATION
            assert await asked(a, c, wish(b.id)) == Status.NO_RESERVATION

    run(test)


def test_what_a_relay_cannot_read_or_does_not_do_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path) as (b, a, _):
            b.middle.belongs(lambda _: True)
            assert await asked(a, b, wish(b"somebody")) == Status.MALFORMED
            assert await asked(a, b, b"\x02\x0a\x7f") == Status.MALFORMED
            assert await asked(a, b, b"\x02\x08\x00") == Status.RESERVATION_REFUSED
            assert await asked(a, b, wish(a.id)) == Status.PERMISSION_DENIED

    run(test)


def test_peers_learn_from_each_other_whether_they_can_be_reached(tmp_path: Path) -> None:
    async def test() -> None:
        async with nodes(tmp_path) as (b, a, _):
            await b.middle.tend([])
            assert b.middle.outside is Outside.ALL
            assert b.middle.tried_addresses() == [address_of(b.daemon)]
            await a.middle.tend([])
            assert a.middle.outside is Outside.NONE, "it listens nowhere"

    run(test)
