"""The directory over hivemind's DHT.

The only module that imports hivemind, and with it torch: import it late.

Used of it: the DHT's remote procedures with their routing table and storage (`DHTProtocol`), over
connections to a daemon that we start ourselves. Searching is ours: hivemind's own loses what it
has found when its caller stops waiting, and trusts values of strangers to decode.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from runnel.clock import Clock
from runnel.dht.clock_skew import ClockSkew
from runnel.dht.hivemind.side_effects import undone
from runnel.dht.hivemind.storage import MAX_AUTHORS, BoundedStorage
from runnel.dht.record_shelf import Found, merge
from runnel.dht.records import (
    MAX_TTL_S,
    Record,
    SignedRecordValidator,
    author_of,
    key_id_of,
    value_of,
)
from runnel.dht.search import search
from runnel.errors import NetworkError
from runnel.types import PeerId, short

_log = logging.getLogger(__name__)

with undone(_log):
    from hivemind.dht.protocol import DHTProtocol
    from hivemind.dht.routing import DHTID
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.dht.validation import DHTRecord, RecordValidatorBase
    from hivemind.p2p import P2P, PeerID
    from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
    from hivemind.proto import dht_pb2
    from hivemind.utils.auth import AuthRole, AuthRPCWrapper
    from hivemind.utils.multiaddr import Multiaddr

if TYPE_CHECKING:
    from runnel.dht.asked_directory import AskedDirectory
    from runnel.dht.daemon import Daemon

REPLICAS = 5
"""Nodes that are asked to hold a record."""

SEARCH_WIDTH = 20
"""Answering nodes after which a search ends; also the size of a bucket of the routing table."""

PARALLEL = 8
"""Questions of one search in flight."""

CALL_S = 3.0
"""How long a node may take to answer."""

_DEPTH_MODULO = 5
_MAX_CALLS = 64
_ATTACH_S = 10.0


class _Validator(RecordValidatorBase):  # type: ignore[misc] # untyped library
    """What hivemind asks about records, answered by ours."""

    def __init__(self, records: SignedRecordValidator) -> None:
        self._records = records

    def validate(self, record: DHTRecord) -> bool:
        """Whether to believe, and keep, a record of somebody else."""
        return self._records.check(
            Record(record.key, record.subkey, record.value, record.expiration_time)
        )


class DirectoryProtocol(DHTProtocol):  # type: ignore[misc] # untyped library
    """hivemind's protocol; a bad record among good ones costs the bad one only."""

    _rpc_handlers = None  # cached per class: these belong to the other one's name

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        for subkey in tuple(dictionary.data)[MAX_AUTHORS:]:
            del dictionary[subkey]  # unchecked: each check takes time
        with dictionary.freeze():
            bad = [
                subkey
                for subkey, (stored, expires_s) in dictionary.items()
                if not self._validate_record(
                    key_bytes, self.serializer.dumps(subkey), stored, expires_s
                )
            ]
        for subkey in bad:
            del dictionary[subkey]
        # Both are the sender's words, and would be merged into what we hold.
        dictionary.maxsize = float("inf")
        dictionary.latest_expiration_time = max(
            (item.expiration_time for item in dictionary.data.values()), default=float("-inf")
        )
        return bool(dictionary.data)


class HivemindDirectory:
    """Signed records in a DHT that all peers carry together; implements `runnel.protocols.PeerDirectory`.

    Survives restarts of the daemon with what it stores for others.
    """

    def __init__(self, daemon: Daemon, clock: Clock, records: SignedRecordValidator) -> None:
        self._daemon = daemon
        self._clock = clock
        self._records = records
        self._p2p: Any = None
        self._protocol: Any = None
        self._skew = ClockSkew(limit_s=MAX_TTL_S)
        self._asked: AskedDirectory | None = None

    @classmethod
    async def start(
        cls, daemon: Daemon, clock: Clock, records: SignedRecordValidator
    ) -> HivemindDirectory:
        """A directory over `daemon`, alone until it has joined others. Close it before the daemon.

        `records` signs what is published here, and checks what others say.

        Raises:
            NetworkError: the daemon has gone, or refuses.
            TimeoutError: it does not answer.
        """
        directory = cls(daemon, clock, records)
        try:
            async with asyncio.timeout(_ATTACH_S):
                await directory._begin()
        except BaseException:
            await directory.aclose()
            raise
        return directory

    @property
    def num_neighbours(self) -> int:
        """Nodes in the routing table."""
        return len(self._protocol.routing_table.uid_to_peer_id)

    @property
    def refused(self) -> Mapping[str, int]:
        """Records that were refused, by reason; see `SignedRecordValidator`."""
        return self._records.refused

    @property
    def clock_skew_s(self) -> float:
        """By how much our clock is behind those of the peers met first: the median."""
        return self._skew.seconds

    @property
    def records(self) -> SignedRecordValidator:
        """What signs and checks the records here."""
        return self._records

    async def publish(self, key: str, value: bytes, *, ttl_s: float, deadline: float) -> bool:
        """Stores `value` under (`key`, this peer), signed; whether anybody holds it now.

        Raises:
            ValueError: the value is longer than `records.MAX_VALUE_BYTES`, or `ttl_s` above an hour.
        """
        if not 0 < ttl_s <= MAX_TTL_S:
            raise ValueError(f"a record that lives {ttl_s} s; expected up to {MAX_TTL_S:.0f} s")
        expires_s = self._clock.unix_s() + self.clock_skew_s + ttl_s
        record = self._records.sign(key_id_of(key), value, expires_s)
        held = [self.hold(record, deadline=deadline)]
        if self._asked is not None:
            held.append(self._asked.publish(key, value, ttl_s=ttl_s, deadline=deadline))
        return any(await asyncio.gather(*held))

    async def lookup(self, key: str, *, deadline: float) -> Mapping[PeerId, bytes]:
        """All live, correctly signed values under `key`, by peer; what was found by `deadline`."""
        others: Mapping[PeerId, bytes] = {}
        searching = self.held(key_id_of(key), deadline=deadline)
        if self._asked is None:
            found = await searching
        else:
            asking = self._asked.lookup(key, deadline=deadline)
            found, others = await asyncio.gather(searching, asking)
        own = {author: value_of(stored) for author, (stored, _) in found.items()}
        return dict(sorted({**others, **own}.items()))

    async def hold(self, record: Record, *, deadline: float) -> bool:
        """See `runnel.dht.record_shelf.RecordKeeper.hold`: here and with the nodes nearest to its key."""
        key_id, expires_s = DHTID.from_bytes(record.key_id), record.expires_s
        author = bytes(author_of(record.subkey))
        held = [self._protocol.storage.store(key_id, record.stored, expires_s, subkey=author)]

        async def hand_to(peer: PeerID) -> None:
            answer = await self._protocol.call_store(
                peer, [key_id], [record.stored], [expires_s], [author]
            )
            held.extend(answer or ())

        try:
            async with asyncio.timeout_at(deadline), asyncio.TaskGroup() as group:
                for peer in islice((await self._search(key_id, {})).values(), REPLICAS):
                    group.create_task(hand_to(peer))
        except TimeoutError:
            _log.debug("publishing under %s was cut short at its deadline", record.key_id.hex())
        return any(held)

    async def held(self, key_id: bytes, *, deadline: float) -> Found:
        """See `runnel.dht.record_shelf.RecordKeeper.held`: here and with the nodes nearest to it."""
        wanted, found = DHTID.from_bytes(key_id), Found()
        _merge(found, self._protocol.storage.get(wanted))
        try:
            async with asyncio.timeout_at(deadline):
                await self._search(wanted, found)
        except TimeoutError:
            _log.debug("looking up %s was cut short at its deadline", key_id.hex())
        return found

    def also_ask(self, asked: AskedDirectory) -> None:
        """From here on peers that carry no directory are asked for what they keep, if they are joined."""
        self._asked = asked

    async def join(self, peers: Iterable[PeerId], *, deadline: float) -> set[PeerId]:
        """Makes `peers`, and those near us that they know, neighbours; the ones who answered.

        Whoever does not answer by `deadline` is left out.
        """
        asked, answered = tuple(peers), set[PeerId]()

        async def greet(peer: PeerId) -> None:
            if await self._ping(peer):
                answered.add(peer)

        try:
            async with asyncio.timeout_at(deadline):
                async with asyncio.TaskGroup() as group:
                    for peer in asked:
                        group.create_task(greet(peer))
                await self._search(self._protocol.node_id, {})
        except TimeoutError:
            _log.debug("joining the directory was cut short at its deadline")
        silent = [peer for peer in asked if peer not in answered]
        if silent and self._asked is not None:
            answered |= await self._asked.join(silent, deadline=deadline)
        return answered

    async def aclose(self) -> None:
        """Leaves the directory. Idempotent."""
        p2p, self._p2p = self._p2p, None
        if p2p is not None:
            await _detach(p2p)

    async def _begin(self) -> None:
        self._p2p = await _attach(self._daemon)
        with _border():
            self._protocol = await DirectoryProtocol.create(
                self._p2p,
                DHTID.generate(),
                SEARCH_WIDTH,
                _DEPTH_MODULO,
                REPLICAS,
                CALL_S,
                _MAX_CALLS,
                record_validator=_Validator(self._records),
            )
        self._protocol.storage = BoundedStorage()
        self._protocol.cache.maxsize = 0  # nobody's records but those we are asked to hold

    async def _search(self, key_id: DHTID, found: Found) -> dict[int, PeerID]:
        """The nearest nodes to `key_id`; what they hold under it is added to `found`."""
        protocol = self._protocol

        async def ask(peer: PeerID) -> dict[int, PeerID] | None:
            answer = await protocol.call_find(peer, [key_id])
            if answer is None:
                return None
            held, named = answer[key_id]
            _merge(found, held)
            named.pop(protocol.node_id, None)
            return dict(islice(named.items(), SEARCH_WIDTH))

        start = protocol.routing_table.get_nearest_neighbors(
            key_id, SEARCH_WIDTH, exclude=protocol.node_id
        )
        return await search(key_id, dict(start), ask, width=SEARCH_WIDTH, parallel=PARALLEL)

    async def _ping(self, peer: PeerId) -> bool:
        """Makes us and `peer` neighbours, and notes the difference of our clocks."""
        protocol, sent_s = self._protocol, self._clock.unix_s()
        try:
            request = dht_pb2.PingRequest(peer=protocol.node_info)
            response = await protocol.get_stub(PeerID(peer)).rpc_ping(request, timeout=CALL_S)
            node_id = DHTID.from_bytes(response.peer.node_id)
            await protocol.update_routing_table(node_id, PeerID(peer), responded=True)
        except Exception as error:  # noqa: BLE001 - the border to a library that raises anything
            _log.debug("peer %s did not answer a ping: %r", short(peer), error)
            return False
        answered_s = self._clock.unix_s()
        self._skew.note(peer, response.dht_time, asked_s=sent_s, answered_s=answered_s)
        return True

    async def reattach(self) -> None:
        """After a restart of the daemon, and before others are greeted: the same node over a new connection.

        Raises as `start` does: the daemon has gone again, and its next start will be told here, too.
        """
        old = self._p2p
        if old is None:
            return
        async with asyncio.timeout(_ATTACH_S):
            self._p2p = self._protocol.p2p = await _attach(self._daemon)
            try:
                with _border():
                    served = AuthRPCWrapper(self._protocol, AuthRole.SERVICER, None)
                    await self._protocol.add_p2p_handlers(self._p2p, served)
            finally:
                await _detach(old)


@contextlib.contextmanager
def _border() -> Iterator[None]:
    """Turns whatever the library raises while the daemon is away into an error of ours."""
    try:
        yield
    except Exception as error:
        raise NetworkError(f"the daemon does not carry the directory: {error!r}") from error


async def _attach(daemon: Daemon) -> P2P:
    with _border():
        return await P2P.replicate(Multiaddr(f"/unix{daemon.folder.daemon_socket}"))


async def _detach(p2p: P2P) -> None:
    """Ends a connection with all that waits for it: hivemind leaves its calls and tasks waiting."""
    control = p2p._client.control
    for call in control._pending_calls.values():
        if not call.done():
            call.set_exception(P2PDaemonError("the connection to the daemon was closed"))
    tasks = [*control._handler_tasks.values(), control._read_task, control._write_task]
    await p2p.shutdown()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _merge(found: Found, held: Any) -> None:
    """Adds records that were checked when they came, the latest of each author."""
    if held is None or not isinstance(held.value, DictionaryDHTValue):
        return
    for subkey, item in held.value.items():
        author = PeerId(subkey)
        if author in found or len(found) < MAX_AUTHORS:
            merge(found, {author: tuple(item)})
