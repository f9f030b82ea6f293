"""A directory for peers that do not carry one: asks connected peers, and keeps what it is asked to keep."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runnel.dht import directory_service as service
from runnel.dht.clock_skew import ClockSkew
from runnel.dht.record_shelf import Found, RecordShelf, merge
from runnel.dht.records import (
    MAX_TTL_S,
    Record,
    SignedRecordValidator,
    key_id_of,
    value_of,
)
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from runnel.clock import Clock
    from runnel.dht.connections import Connections
    from runnel.protocols import Signer, Transport

_log = logging.getLogger(__name__)

MAX_ASKED = 5
"""Peers that are asked at a time: those that answered last, then those never asked."""

ASK_S = 8.0
_CHECKS_PER_TURN = 16  # four milliseconds of checking signatures


class AskedDirectory:
    """Signed records that others hold; implements `runnel.protocols.PeerDirectory`.

    Peers without a daemon ask each other too: each keeps on its own shelf what it is asked to.
    """

    def __init__(
        self,
        transport: Transport,
        connections: Connections,
        signer: Signer,
        clock: Clock,
        *,
        only_joined: bool = False,
    ) -> None:
        """With `only_joined` nobody is asked but those that `join` found; else all who are connected."""
        self._transport = transport
        self._connections = connections
        self._only_joined = only_joined
        self._clock = clock
        self._records = SignedRecordValidator(signer, clock)
        self._shelf = RecordShelf(clock)
        self._skew = ClockSkew(limit_s=MAX_TTL_S)
        self._asked: dict[
            PeerId, tuple[bool, float]
        ] = {}  # whether it answered, and when (loop time)
        self._service = service.DirectoryService(transport, self._shelf, self._records, clock)

    @property
    def refused(self) -> Mapping[str, int]:
        """Records that were refused, by reason; see `SignedRecordValidator`."""
        return self._records.refused

    @property
    def clock_skew_s(self) -> float:
        """By how much our clock is behind those of the peers asked: the median."""
        return self._skew.seconds

    async def serve(self) -> None:
        """Answers the questions of others from here on; ends with the transport."""
        await self._service.serve()

    async def publish(self, key: str, value: bytes, *, ttl_s: float, deadline: float) -> bool:
        """Stores `value` under (`key`, this peer), signed; whether anybody holds it now.

        Raises:
            ValueError: the value is longer than `records.MAX_VALUE_BYTES`, or `ttl_s` above an hour.
        """
        if not 0 < ttl_s <= MAX_TTL_S:
            raise ValueError(f"a record that lives {ttl_s} s; expected up to {MAX_TTL_S:.0f} s")
        expires_s = self._clock.unix_s() + self.clock_skew_s + ttl_s
        record = self._records.sign(key_id_of(key), value, expires_s)
        held = [await self._shelf.hold(record, deadline=deadline)]
        question = [service.PUBLISH, record.key_id, record.stored, expires_s]

        def take(_peer: PeerId, answer: Any) -> None:
            held.append(answer is True)

        await self._ask_all(question, take, deadline)
        return any(held)

    async def lookup(self, key: str, *, deadline: float) -> Mapping[PeerId, bytes]:
        """All live, correctly signed values under `key`, by peer; what was found by `deadline`."""
        key_id = key_id_of(key)
        found = await self._shelf.held(key_id, deadline=deadline)
        answers: list[Any] = []
        await self._ask_all(
            [service.LOOKUP, key_id], lambda _, answer: answers.append(answer), deadline
        )
        for answer in answers:
            merge(found, await self._checked(key_id, answer))
        return {author: value_of(stored) for author, (stored, _) in sorted(found.items())}

    async def join(self, peers: Iterable[PeerId], *, deadline: float) -> set[PeerId]:
        """Asks `peers` for the time; the ones who answered by `deadline`."""
        answered: set[PeerId] = set()
        await self._ask_all(
            [service.TIME], lambda peer, _: answered.add(peer), deadline, among=tuple(peers)
        )
        return answered

    async def aclose(self) -> None:
        """Leaves the directory; what was published stays until it expires."""

    async def _ask_all(
        self,
        question: list[Any],
        take: Any,
        deadline: float,
        among: tuple[PeerId, ...] | None = None,
    ) -> None:
        """Asks several peers at once; gives each answer to `take` with its peer as it comes."""
        asked = among if among is not None else await self._chosen(deadline)
        deadline = min(deadline, asyncio.get_running_loop().time() + ASK_S)

        async def ask(peer: PeerId) -> None:
            answer = await self._ask(peer, question, deadline)
            if answer is not None:
                take(peer, answer[1])

        async with asyncio.TaskGroup() as group:
            for peer in asked:
                group.create_task(ask(peer))

    async def _chosen(self, deadline: float) -> list[PeerId]:
        try:
            connected = await self._connections.connected_peers(deadline=deadline)
        except (NetworkError, TimeoutError) as error:
            _log.debug("who is connected: %s", str(error) or "no answer in time")
            return []
        for gone in self._asked.keys() - set(connected):
            del self._asked[gone]
        if self._only_joined:
            connected = [peer for peer in connected if self._asked.get(peer, (False, 0.0))[0]]
        return sorted(connected, key=self._rank)[:MAX_ASKED]

    def _rank(self, peer: PeerId) -> tuple[int, float]:
        """Who answered last comes first, who was never asked next, who was silent last at the end."""
        if peer not in self._asked:
            return 1, 0.0
        answered, at_s = self._asked[peer]
        return (0, -at_s) if answered else (2, at_s)

    async def _ask(self, peer: PeerId, question: list[Any], deadline: float) -> list[Any] | None:
        """The answer of `peer`, noted with its clock; None if there is none."""
        loop, asked_s = asyncio.get_running_loop(), self._clock.unix_s()
        try:
            answer = await self._converse(peer, question, deadline)
            theirs_s, _ = answer
            if not isinstance(theirs_s, float):
                raise PeerError("malformed", "a directory's answer without the time")  # noqa: TRY301
        except (NetworkError, PeerError, TimeoutError, ValueError, TypeError) as error:
            _log.debug("peer %s as a directory: %s", short(peer), str(error) or "no answer in time")
            self._asked[peer] = (False, loop.time())
            return None
        self._asked[peer] = (True, loop.time())
        self._skew.note(peer, theirs_s, asked_s=asked_s, answered_s=self._clock.unix_s())
        return answer

    async def _converse(self, peer: PeerId, question: list[Any], deadline: float) -> list[Any]:
        stream = await self._transport.open(peer, service.PROTOCOL, deadline=deadline)
        try:
            await stream.send(pack(question), deadline=deadline)
            data = await stream.receive(max_bytes=service.MAX_ANSWER_BYTES, deadline=deadline)
        finally:
            await stream.aclose()
        answer: list[Any] = unpack(bytes(data), max_bytes=service.MAX_ANSWER_BYTES)
        return answer

    async def _checked(self, key_id: bytes, answer: Any) -> Found:
        """Those records of an answer that their authors signed and that have not expired."""
        found: Found = {}
        if not isinstance(answer, list):
            return found
        now_s = self._clock.unix_s() + self.clock_skew_s
        for number, row in enumerate(answer[: service.MAX_RECORDS]):
            if number % _CHECKS_PER_TURN == _CHECKS_PER_TURN - 1:
                await asyncio.sleep(0)
            match row:
                case [bytes(author), bytes(stored), float(expires_s)] if expires_s > now_s:
                    if self._records.check(Record(key_id, pack(author), stored, expires_s)):
                        found[PeerId(author)] = (stored, expires_s)
                case _:
                    _log.debug("left out a row of a directory's answer")
        return found
