"""Catching up from nothing: the certified chain from several members, a pinned state, the rest by results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runnel.dht.blob_fetch import BlobFetcher
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.hashing import digest
from runnel.node import following
from runnel.node.chain import Chain
from runnel.node.events import StateFetched
from runnel.node.messages import Records, decode, encode
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, digest_of, items
from runnel.node.run_service import GENESIS, RECORDS, ask
from runnel.optim.store import OuterStore, raw
from runnel.protocols import Transport
from runnel.types import Digest, PeerId, short

logger = logging.getLogger(__name__)

_FETCH_S = 600.0
_MAX_REQUESTS = 100_000
_STRAGGLERS_S = 1.0
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Source:
    """Members to ask, over which transport, about which run."""

    transport: Transport
    donors: tuple[PeerId, ...]
    run: bytes


@dataclass(frozen=True, slots=True)
class Fetched:
    """A state downloaded: after which record, and how."""

    number: int
    size_bytes: int
    seconds: float
    donors: tuple[str, ...]
    numbers: tuple[int, ...]

    def event(self) -> StateFetched:
        """What the journal says of it."""
        return StateFetched(
            unix_s=0.0,
            round=self.number,
            size_bytes=self.size_bytes,
            seconds=self.seconds,
            donors=self.donors,
        )


def pins(path: Sequence[Digest], every: int) -> tuple[int, ...]:
    """Numbers of the two newest pinned records of a path; -1 is genesis."""
    number = len(path) - 2
    newest = (number // every) * every if number >= every else -1
    older = newest - every if newest - every >= every else -1
    return (newest, older) if newest >= 0 else (-1,)


async def catch_up(
    source: Source, state: ProtocolState, store: OuterStore, *, every: int
) -> Fetched:
    """Fetches the chain and a pinned state; again with the newest records if all pins have moved on.

    Raises:
        NetworkError: nobody answered, or no state can be had.
    """
    problem = NetworkError("no state was asked for")
    for _ in range(_ATTEMPTS):
        source = Source(source.transport, await fetch_chain(source, state), source.run)
        path = state.target or list(state.chain.path)
        try:
            return await fetch_state(source, store, state.chain, path, every=every)
        except NetworkError as error:
            problem = error
    raise problem


async def fetch_chain(source: Source, state: ProtocolState) -> tuple[PeerId, ...]:
    """Makes the best certified path that members name the target; who told theirs.

    All are asked at the same time; whoever says nothing long after the first does not count.

    Raises:
        NetworkError: nobody answered.
    """
    loop, reasons, answered = asyncio.get_running_loop(), list[str](), list[PeerId]()

    async def ask_one(donor: PeerId) -> None:
        try:
            await _fetch_path(source, state, donor)
            answered.append(donor)
        except (NetworkError, PeerError, TimeoutError) as error:
            reasons.append(f"{short(donor)}: {str(error) or 'no answer in time'}")

    asked = {loop.create_task(ask_one(donor)) for donor in source.donors}
    try:
        waiting = asked
        while waiting and not answered:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            await asyncio.wait(waiting, timeout=_STRAGGLERS_S)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if not answered:
        raise NetworkError(f"no member told the run's records: {'; '.join(reasons)}")
    return tuple(answered)


async def _fetch_path(source: Source, state: ProtocolState, donor: PeerId) -> None:
    known = state.target or state.chain.path
    locator = [known[-1], *state.chain.locator()]
    for _ in range(_MAX_REQUESTS):
        answer = await ask(source.transport, donor, source.run, RECORDS, locator[:256])
        message = decode(source.run, answer)
        if not isinstance(message, Records):
            raise PeerError("malformed", "expected records")
        if not message.records:
            return
        now = asyncio.get_running_loop().time()
        following.on_records(state, donor, message, now)
        locator = [message.records[-1].hash, *locator[1:]]


def records_answer(chain: Chain, run: bytes, locator: list[Digest]) -> bytes:
    """What a member answers to a request for records."""
    return encode(run, following.records_after(chain, locator))


async def fetch_state(
    source: Source, store: OuterStore, chain: Chain, path: Sequence[Digest], *, every: int
) -> Fetched:
    """Downloads a pinned state into the store and moves the chain to its record.

    The newest pin first; the older one if it can no longer be had whole.

    Raises:
        NetworkError: neither can be had.
    """
    problem: Exception | None = None
    for pin in pins(path, every):
        try:
            fetched = await _fetch_pin(source, store, chain, path[: pin + 2])
        except (NetworkError, PeerError, TimeoutError) as error:
            logger.info("the state after round %d cannot be had: %s", pin, error)
            problem = error
            continue
        chain.follow(list(path[: pin + 2]))
        return fetched
    raise NetworkError(
        f"no state of the run can be had from {len(source.donors)} members: {problem}"
    )


async def _fetch_pin(
    source: Source, store: OuterStore, chain: Chain, path: Sequence[Digest]
) -> Fetched:
    loop, fetcher = asyncio.get_running_loop(), BlobFetcher(source.transport)
    began, size, givers = loop.time(), 0, set[str]()
    roots, numbers = await _state_roots(source, chain, path, len(store.sizes))
    for fragment, root in enumerate(roots):
        numel = store.sizes[fragment]
        both = np.empty(2 * numel, dtype=np.float32)
        buffer = raw(both)
        deadline = loop.time() + _FETCH_S
        report = await fetcher.fetch_tree(
            root, source.donors, out=buffer, max_total_bytes=buffer.nbytes, deadline=deadline
        )
        store.load(fragment, both[:numel], both[numel:])
        size += report.size_bytes
        givers |= {short(peer) for peer, count in report.bytes_by_donor.items() if count}
    return Fetched(len(path) - 2, size, loop.time() - began, tuple(sorted(givers)), numbers)


async def _state_roots(
    source: Source, chain: Chain, path: Sequence[Digest], count: int
) -> tuple[list[Digest], tuple[int, ...]]:
    newest: list[Record | None] = [None] * count
    for name in path[1:]:
        record = chain.record(name)
        if record.slices:
            newest[record.number % count] = record
    roots = [record.state_root if record else Digest(b"") for record in newest]
    if not all(roots):
        first = await _genesis_roots(source, chain.record(path[0]), count)
        roots = [root or first[i] for i, root in enumerate(roots)]
    return roots, tuple(record.number if record else -1 for record in newest)


async def _genesis_roots(source: Source, genesis: Record, count: int) -> list[Digest]:
    answer = await fetch_genesis(source, genesis)
    return [digest_of(root) for root in items(unpack(answer, max_bytes=1 << 20), count)]


async def fetch_genesis(source: Source, genesis: Record) -> bytes:
    """The names of the first state of all fragments, as a manifest's state root names them.

    Raises:
        NetworkError: nobody told it.
    """
    reasons = []
    for donor in source.donors:
        try:
            answer = await ask(source.transport, donor, source.run, GENESIS)
        except (NetworkError, PeerError, TimeoutError) as error:
            reasons.append(f"{short(donor)}: {error}")
            continue
        if digest(answer) == genesis.state_root:
            return answer
        reasons.append(f"{short(donor)}: not the state that the manifest names")
    raise NetworkError(f"nobody told the run's first state: {'; '.join(reasons)}")


def genesis_blob(roots: Sequence[Digest]) -> bytes:
    """The content that a manifest's state root names: the roots of all fragments' first states."""
    return pack(list(roots))
