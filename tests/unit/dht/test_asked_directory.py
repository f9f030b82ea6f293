"""The directory by asking: who finds whom, and what those who lie or ask too much achieve."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from runnel.clock import ManualClock
from runnel.dht import directory_service as service
from runnel.dht.asked_directory import AskedDirectory
from runnel.dht.identity import Identity
from runnel.dht.memory import MemoryNetwork, MemoryTransport
from runnel.dht.record_shelf import Found
from runnel.dht.records import MAX_VALUE_BYTES, Record, SignedRecordValidator, key_id_of
from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.protocols import Stream
from runnel.types import PeerId

NOW_S = 1_700_000_000.0


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


class Connected:
    """Whom a peer is connected to; `runnel.dht.connections.Connections` as far as directories ask."""

    def __init__(self, me: PeerId, peers: list[PeerId]) -> None:
        self._me, self._peers = me, peers

    async def connected_peers(self, *, deadline: float) -> list[PeerId]:
        return sorted(set(self._peers) - {self._me})

    async def identify(self, *, deadline: float) -> tuple[PeerId, list[str]]:
        return self._me, []

    async def connect(self, peer: PeerId, addresses: Iterable[str], *, deadline: float) -> None:
        raise NotImplementedError

    async def find_addresses(self, peer: PeerId, *, deadline: float) -> list[str]:
        return []


class World:
    """Peers on one network in memory, all connected, each with a clock of its own."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(seed=1)
        self.peers: list[PeerId] = []

    def transport(self, identity: Identity) -> MemoryTransport:
        self.peers.append(identity.peer_id)
        return MemoryTransport(self.network, identity.peer_id)

    async def peer(self, *, ahead_s: float = 0.0, **options: bool) -> AskedDirectory:
        identity = Identity.generate()
        transport, connected = self.transport(identity), Connected(identity.peer_id, self.peers)
        clock = ManualClock(unix_s=NOW_S + ahead_s)
        directory = AskedDirectory(transport, connected, identity, clock, **options)
        await directory.serve()
        return directory

    async def liar(self, answer: Any) -> Identity:
        """A peer that gives this answer to every question."""
        identity = Identity.generate()

        async def serve(stream: Stream) -> None:
            await stream.receive(max_bytes=1 << 20, deadline=in_s(5))
            data = answer if isinstance(answer, bytes) else pack(answer)
            await stream.send(data, deadline=in_s(5))

        await self.transport(identity).serve(service.PROTOCOL, serve)
        return identity


def values(found: Any) -> list[bytes]:
    return sorted(found.values())


def test_peers_find_each_other_through_one_that_both_asked() -> None:
    async def test() -> None:
        world = World()
        a, b, c = [await world.peer() for _ in range(3)]
        assert await a.publish("run", b"a", ttl_s=60, deadline=in_s(5))
        assert await b.publish("run", b"b", ttl_s=60, deadline=in_s(5))
        assert values(await c.lookup("run", deadline=in_s(5))) == [b"a", b"b"]
        assert await c.lookup("other", deadline=in_s(5)) == {}

    run_virtual(test)


def test_a_newer_record_replaces_the_older_one() -> None:
    async def test() -> None:
        world = World()
        a, b = await world.peer(), await world.peer()
        for value, ttl_s in ((b"old", 30.0), (b"new", 31.0)):
            await a.publish("run", value, ttl_s=ttl_s, deadline=in_s(5))
        assert values(await b.lookup("run", deadline=in_s(5))) == [b"new"]

    run_virtual(test)


def test_values_and_lives_out_of_bounds_are_refused_at_home() -> None:
    async def test() -> None:
        a = await World().peer()
        with pytest.raises(ValueError, match="lives"):
            await a.publish("run", b"x", ttl_s=3601, deadline=in_s(5))
        with pytest.raises(ValueError, match="holds"):
            await a.publish("run", bytes(MAX_VALUE_BYTES + 1), ttl_s=60, deadline=in_s(5))

    run_virtual(test)


def test_a_clock_that_is_an_hour_behind_publishes_all_the_same() -> None:
    async def test() -> None:
        world = World()
        late = await world.peer(ahead_s=-3000.0)
        others = [await world.peer() for _ in range(2)]
        assert await late.join(world.peers[1:], deadline=in_s(5)) == set(world.peers[1:])
        assert late.clock_skew_s == pytest.approx(3000.0)
        await late.publish("run", b"late", ttl_s=60, deadline=in_s(5))
        assert values(await others[0].lookup("run", deadline=in_s(5))) == [b"late"]

    run_virtual(test)


def signed(
    identity: Identity, value: bytes, *, key: str = "run", expires_s: float = 60.0
) -> Record:
    records = SignedRecordValidator(identity, ManualClock(unix_s=NOW_S))
    return records.sign(key_id_of(key), value, NOW_S + expires_s)


def row(record: Record, author: PeerId) -> list[Any]:
    return [author, record.stored, record.expires_s]


MALLORY, VICTIM = Identity.generate(), Identity.generate()
LIES: dict[str, Any] = {
    "another's name": [row(signed(MALLORY, b"evil"), VICTIM.peer_id)],
    "another key": [row(signed(VICTIM, b"old", key="x"), VICTIM.peer_id)],
    "another time": [[VICTIM.peer_id, signed(VICTIM, b"old").stored, NOW_S + 61.0]],
    "no rows": [1, None, "text", [], [b"", b"", 1], [VICTIM.peer_id, b"", NOW_S + 9]],
    "no list": b"bytes",
    "expired": [row(signed(VICTIM, b"old", expires_s=-1.0), VICTIM.peer_id)],
}


@pytest.mark.parametrize("lie", LIES, ids=LIES)
def test_lies_add_nothing_and_hide_nothing(lie: str) -> None:
    async def test() -> None:
        world = World()
        honest, asker = await world.peer(), await world.peer()
        await world.liar([NOW_S, LIES[lie]])
        await honest.publish("run", b"honest", ttl_s=60, deadline=in_s(5))
        assert values(await asker.lookup("run", deadline=in_s(5))) == [b"honest"]

    run_virtual(test)


@pytest.mark.parametrize("answer", [b"\xc1", b"", [], [NOW_S], [1, True], ["now", True], 5, None])
def test_answers_that_make_no_sense_count_as_none(answer: Any) -> None:
    async def test() -> None:
        world = World()
        asker = await world.peer()
        liar = await world.liar(answer)
        assert await asker.join([liar.peer_id], deadline=in_s(5)) == set()
        assert await asker.lookup("run", deadline=in_s(5)) == {}
        assert asker.clock_skew_s == 0.0

    run_virtual(test)


def test_a_silent_peer_costs_no_more_than_the_deadline() -> None:
    async def test() -> None:
        world = World()
        asker, identity = await world.peer(), Identity.generate()

        async def silent(stream: Stream) -> None:
            await asyncio.Event().wait()

        await world.transport(identity).serve(service.PROTOCOL, silent)
        began, deadline = in_s(0), in_s(2)
        assert await asker.lookup("run", deadline=deadline) == {}
        assert in_s(0) - began < 3.0

    run_virtual(test)


def test_with_only_joined_peers_nobody_else_is_asked() -> None:
    async def test() -> None:
        world = World()
        keeper = await world.peer()
        await keeper.publish("run", b"kept", ttl_s=60, deadline=in_s(5))
        asker = await world.peer(only_joined=True)
        assert await asker.lookup("run", deadline=in_s(5)) == {}
        await asker.join(world.peers[:1], deadline=in_s(5))
        assert values(await asker.lookup("run", deadline=in_s(5))) == [b"kept"]

    run_virtual(test)


async def question(world: World, identity: Identity, *words: Any) -> Any:
    """The answer of the first peer to a question that may be anything."""
    transport = MemoryTransport(world.network, identity.peer_id)
    stream = await transport.open(world.peers[0], service.PROTOCOL, deadline=in_s(5))
    await stream.send(pack(list(words)), deadline=in_s(5))
    data = await stream.receive(max_bytes=service.MAX_ANSWER_BYTES, deadline=in_s(15))
    await stream.aclose()
    await transport.aclose()
    return unpack(data, max_bytes=service.MAX_ANSWER_BYTES)


def test_nobody_publishes_in_anothers_name() -> None:
    async def test() -> None:
        world = World()
        keeper, mine = await world.peer(), signed(MALLORY, b"mine")
        stolen = signed(VICTIM, b"stolen")
        ask = [service.PUBLISH, stolen.key_id, stolen.stored, stolen.expires_s]
        assert await question(world, MALLORY, *ask) == [NOW_S, False]
        assert keeper.refused == {"signature": 1}
        ask = [service.PUBLISH, mine.key_id, mine.stored, mine.expires_s]
        assert await question(world, MALLORY, *ask) == [NOW_S, True]
        assert values(await keeper.lookup("run", deadline=in_s(5))) == [b"mine"]

    run_virtual(test)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["time", 1],
        ["publish", b"k" * 20, b""],
        ["publish", b"k" * 20, b"", 1],
        ["publish", b"k" * 19, b"", 1.0],
        ["lookup", b"k" * 21],
        ["lookup", "k" * 20],
        ["shutdown"],
    ],
)
def test_what_is_no_question_gets_no_answer(words: list[Any]) -> None:
    async def test() -> None:
        world = World()
        await world.peer()
        with pytest.raises(PeerError) as caught:
            await question(world, MALLORY, *words)
        assert caught.value.reason == "closed"
        assert await question(world, VICTIM, service.TIME) == [NOW_S, True]

    run_virtual(test)


def test_who_asks_without_end_is_not_answered_and_others_are() -> None:
    async def test() -> None:
        world = World()
        await world.peer()
        answered, refused = 0, False
        while not refused and answered <= 2 * service.RATE.burst:
            try:
                await question(world, MALLORY, service.TIME)
                answered += 1
            except PeerError:
                refused = True
        assert refused
        assert answered >= service.RATE.burst
        assert await question(world, VICTIM, service.TIME) == [NOW_S, True]

    run_virtual(test)


def test_an_answer_has_room_for_so_many_and_each_asker_gets_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "MAX_RECORDS", 4)

    async def test() -> None:
        world = World()
        keeper = await world.peer()
        for _ in range(12):
            author = Identity.generate()
            record = signed(author, b"here")
            assert await keeper._shelf.hold(record, deadline=in_s(5))
        seen: list[set[bytes]] = []
        for _ in range(4):
            asker = Identity.generate()
            _, rows = await question(world, asker, service.LOOKUP, key_id_of("run"))
            assert len(rows) == 4
            seen.append({author for author, *_ in rows})
        assert len(set.union(*seen)) > 4

    run_virtual(test)


def test_a_directory_that_is_not_there_is_no_mistake_of_the_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Closed:
        async def hold(self, record: Record, *, deadline: float) -> bool:
            raise NetworkError("the directory is closed")

        async def held(self, key_id: bytes, *, deadline: float) -> Found:
            raise NetworkError("the directory is closed")

    async def test() -> None:
        world, identity, clock = World(), Identity.generate(), ManualClock(unix_s=NOW_S)
        transport = world.transport(identity)
        records = SignedRecordValidator(identity, clock)
        await service.DirectoryService(transport, Closed(), records, clock).serve()
        asker = await world.peer()
        assert await asker.lookup("run", deadline=in_s(5)) == {}

    run_virtual(test)
    assert not [one for one in caplog.records if one.levelname in {"ERROR", "WARNING"}]
