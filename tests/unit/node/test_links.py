"""Control messages: who is kept in touch with, who is read slowly, who is not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from runnel.dht.identity import null_peer_id
from runnel.dht.memory import MemoryTransport
from runnel.dht.memory_network import Link, MemoryNetwork
from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack
from runnel.errors import PeerError
from runnel.node.action_queue import MAX_WAITING, ActionQueue
from runnel.node.actions import Send
from runnel.node.contacts import Contacts
from runnel.node.links import CONTROL_PROTOCOL, Links
from runnel.node.messages import Hello, Message, encode
from runnel.node.standing import BAD_RATE, SHUT_OUT_S, STRANGER_RATE, Standing
from runnel.types import PeerId
from tests.support.members import PEERS, RUN, name
from tests.support.states import ME, state_of

US, THEM, OTHER = null_peer_id(1), null_peer_id(2), null_peer_id(3)
HELLO = Hello(name("head"), 1)


class Pair:
    """Our links, with notes of what arrived, and the transport of somebody who talks to us."""

    def __init__(self, refuse: Callable[[Message], bool] = lambda _: False) -> None:
        self.network = MemoryNetwork(seed=1, default_link=Link(latency_s=0.001, up_bits_s=1e9))
        self.taken: list[tuple[PeerId, Message]] = []
        self._refuse = refuse
        self.standing = Standing(lambda _: False)
        self.queue = ActionQueue()
        self.links = Links(
            MemoryTransport(self.network, US),
            RUN,
            receive=self._receive,
            standing=self.standing,
            ready=self.queue.room,
        )
        self.them = MemoryTransport(self.network, THEM)

    def _receive(self, sender: PeerId, message: Message) -> None:
        if self._refuse(message):
            raise PeerError("malformed", "as asked")
        self.taken.append((sender, message))

    async def send(self, messages: int) -> None:
        loop = asyncio.get_running_loop()
        stream = await self.them.open(US, CONTROL_PROTOCOL, deadline=loop.time() + 5)
        for _ in range(messages):
            await stream.send(pack([encode(RUN, HELLO)]), deadline=loop.time() + 900)


def test_a_stranger_that_floods_is_read_at_the_rate_it_is_granted() -> None:
    async def main() -> None:
        pair, loop = Pair(), asyncio.get_running_loop()
        await pair.links.serve()
        began_s, extra = loop.time(), 500
        await pair.send(int(STRANGER_RATE.burst) + extra)
        assert loop.time() - began_s >= (extra - 1) / STRANGER_RATE.per_s
        await pair.links.aclose()

    run_virtual(main)


def test_whoever_sends_rubbish_is_not_read_for_a_while_and_then_is() -> None:
    async def main() -> None:
        pair = Pair(refuse=lambda _: True)
        await pair.links.serve()
        with pytest.raises(PeerError):
            await pair.send(int(BAD_RATE.burst) + 2)
        with pytest.raises(PeerError):
            await pair.send(1)
        told = {refused.reason: refused.count for refused in pair.links.refusals()}
        assert told == {"malformed": int(BAD_RATE.burst) + 1, "shut-out": 1}
        await asyncio.sleep(SHUT_OUT_S)
        pair._refuse = lambda _: False
        await pair.send(1)
        await asyncio.sleep(0.1)
        assert pair.taken == [(THEM, HELLO)]
        await pair.links.aclose()

    run_virtual(main)


def test_nothing_is_read_while_too_much_waits_to_be_carried_out() -> None:
    async def main() -> None:
        pair = Pair()
        await pair.links.serve()
        pair.queue.post([Send(HELLO)] * MAX_WAITING)
        sending = asyncio.get_running_loop().create_task(pair.send(50))
        await asyncio.sleep(30)
        assert pair.queue.is_full
        assert not sending.done()
        assert not pair.taken
        assert len(pair.queue.stretch()) == MAX_WAITING  # the disk works again
        await sending
        await asyncio.sleep(0.1)
        assert len(pair.taken) == 50
        await pair.links.aclose()

    run_virtual(main)


def test_links_that_nobody_needs_end() -> None:
    async def main() -> None:
        pair = Pair()
        pair.links.send(HELLO, [THEM, OTHER])
        await asyncio.sleep(0.1)
        assert set(pair.links._tasks) == {THEM, OTHER}
        pair.links.keep([OTHER])
        await asyncio.sleep(0.1)
        assert set(pair.links._tasks) == {OTHER}
        assert not pair.links._ending
        await pair.links.aclose()

    run_virtual(main)


def test_answers_to_very_many_strangers_open_a_bounded_number_of_links() -> None:
    async def main() -> None:
        pair = Pair()
        pair.links.keep([THEM])
        strangers = [null_peer_id(number) for number in range(1000, 2000)]
        pair.links.send(HELLO, [THEM])
        for stranger in strangers:
            pair.links.send(HELLO, [stranger])
        assert (
            len(pair.links._tasks) == len(pair.links._boxes._boxes) == len(pair.links._wake) == 512
        )
        assert THEM in pair.links._tasks
        assert set(strangers[-511:]) <= set(pair.links._tasks)
        await asyncio.sleep(0.1)
        assert not pair.links._ending
        await pair.links.aclose()

    run_virtual(main)


def test_of_very_many_peers_that_a_directory_names_a_part_is_spoken_to_and_another_one_each_time() -> (
    None
):
    contacts = Contacts(state_of())
    named = [null_peer_id(number) for number in range(100, 1100)]
    spoken_to: set[PeerId] = set()
    for _ in range(50):
        contacts.seed(named)
        audience = set(contacts.audience(1.0)) - set(PEERS[:3])
        assert len(audience) == 64
        spoken_to |= audience
    assert len(spoken_to) > 900


def test_everybody_is_told_everything_but_only_the_newest_guests() -> None:
    contacts = Contacts(state_of())
    guests = [null_peer_id(number) for number in range(100, 300)]
    for number, guest in enumerate(guests):
        contacts.heard(guest, number / 1000)
    audience = contacts.audience(1.0)
    assert set(PEERS[:3]) - {ME} <= set(audience)
    assert set(audience) - set(PEERS[:3]) == set(guests[-64:])
