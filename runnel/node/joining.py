"""Catching up from nothing: the certified chain from several members, a pinned state, the rest by results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runnel.dht.blob_fetch import BlobFetcher
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.hashing import digest
from runnel.node import following
from runnel.node.chain import Chain
from runnel.node.messages import Records, decode, encode
from runnel.node.pins import pins
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, digest_of, items
from runnel.node.run_service import GENESIS, RECORDS, ask
from runnel.node.saved_states import State
from runnel.node.state_download import Fetched, StateDownload
from runnel.optim.exchange import StateStore
from runnel.protocols import Transport
from runnel.types import Digest, PeerId, short

logger = logging.getLogger(__name__)

_MAX_REQUESTS = 100_000
_STRAGGLERS_S = (0.25, 1.0)
"""How long others may take beyond the first: twice as long as it took, within these."""
_FEW_DONORS = 3
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Source:
    """Members to ask, over which transport, about which run; `told` is called after each answer with records."""

    transport: Transport
    donors: tuple[PeerId, ...]
    run: bytes
    told: Callable[[], None] = lambda: None


Rebuild = Callable[[Source, Sequence[Digest]], Awaitable[tuple[Fetched, State] | None]]
"""Makes the state at the end of a path out of the log; None if it is to be downloaded."""


async def catch_up(
    source: Source,
    state: ProtocolState,
    store: StateStore,
    *,
    every: int,
    keep: Path | None = None,
    rebuild: Rebuild | None = None,
) -> Fetched:
    """Fetches the chain and a pinned state; again with the newest records if all pins have moved on.

    `keep` is a folder for what has arrived, from which the next process goes on if this one ends;
    `rebuild` is asked for a state before it is downloaded.

    Raises:
        NetworkError: nobody answered, or no state can be had.
        StorageError: the disk refused to keep it.
    """
    problem, fetcher = NetworkError("no state was asked for"), BlobFetcher(source.transport)
    for _ in range(_ATTEMPTS):
        source = replace(source, donors=await find_holders(source, state))
        path = state.target or state.chain.path
        pinned = path[: pins(state.chain, path, every)[0] + 2]
        made = await rebuild(source, pinned) if rebuild is not None else None
        if made is not None:
            store.load(0, *made[1])
            state.chain.follow(pinned)
            return made[0]
        try:
            download = StateDownload(fetcher, source.donors, keep=keep)
            return await fetch_state(source, store, state.chain, path, download, every=every)
        except NetworkError as error:
            problem = error
    raise problem


async def find_holders(source: Source, state: ProtocolState) -> tuple[PeerId, ...]:
    """Fetches the chain; gives whoever told it, and members that the chain itself names if those are few.

    Raises:
        NetworkError: nobody answered.
        StorageError: what was told could not be kept.
    """
    holders = await fetch_chain(source, state)
    if len(holders) >= _FEW_DONORS:
        return holders
    newest = state.chain.record((state.target or state.chain.path)[-1])
    asked = {*source.donors, state.me}
    others = tuple(peer for peer in newest.view if peer not in asked)
    if others:
        with contextlib.suppress(NetworkError):  # those who told the chain will do
            holders += await fetch_chain(replace(source, donors=others), state)
    return holders


async def fetch_chain(source: Source, state: ProtocolState) -> tuple[PeerId, ...]:
    """Makes the best certified path that members name the target; who told theirs.

    All are asked at the same time; whoever says nothing long after the first does not count.

    Raises:
        NetworkError: nobody answered.
        StorageError: what was told could not be kept.
    """
    loop, reasons, answered = asyncio.get_running_loop(), list[str](), list[PeerId]()
    began_s = loop.time()

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
            shortest_s, longest_s = _STRAGGLERS_S
            twice_s = 2 * (loop.time() - began_s)
            await asyncio.wait(waiting, timeout=min(longest_s, max(shortest_s, twice_s)))
    finally:
        for task in asked:
            task.cancel()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):  # of this machine: donors' own are among the reasons
            raise outcome
    if not answered:
        told = "; ".join(reasons) or "none is known"
        raise NetworkError(
            f"no member told the run's records ({told}): try again when a member is there"
        )
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
        source.told()
        locator = [message.records[-1].hash, *locator[1:]]


def records_answer(chain: Chain, run: bytes, locator: list[Digest]) -> bytes:
    """What a member answers to a request for records."""
    return encode(run, following.records_after(chain, locator))


async def fetch_state(
    source: Source,
    store: StateStore,
    chain: Chain,
    path: Sequence[Digest],
    download: StateDownload,
    *,
    every: int,
) -> Fetched:
    """Downloads a pinned state into the store and moves the chain to its record.

    The newest pin first; the older one if it can no longer be had whole.

    Raises:
        NetworkError: neither can be had.
    """
    problem: Exception | None = None
    pinned = pins(chain, path, every)
    newest = [
        record for pin in pinned for record in _newest(chain, path[: pin + 2], len(store.sizes))
    ]
    wanted = {record.state_root for record in newest if record is not None}
    if None not in newest:  # what a first state is called is not known here
        await download.keep_only(wanted)
    for pin in pinned:
        try:
            fetched = await _fetch_pin(source, store, chain, path[: pin + 2], download)
        except (NetworkError, PeerError, TimeoutError) as error:
            logger.info("the state after round %d cannot be had: %s", pin, error)
            problem = error
            continue
        chain.follow(path[: pin + 2])
        return fetched
    raise NetworkError(
        f"no state of the run can be had from {len(source.donors)} members: {problem}"
    )


async def _fetch_pin(
    source: Source,
    store: StateStore,
    chain: Chain,
    path: Sequence[Digest],
    download: StateDownload,
) -> Fetched:
    roots, numbers = await _state_roots(source, chain, path, len(store.sizes))
    for fragment, root in enumerate(roots):
        store.load(fragment, *await download.fetch(root, store.shared_sizes[fragment]))
    return download.report(len(path) - 2, numbers)


async def _state_roots(
    source: Source, chain: Chain, path: Sequence[Digest], count: int
) -> tuple[list[Digest], tuple[int, ...]]:
    newest = _newest(chain, path, count)
    roots = [record.state_root if record else Digest(b"") for record in newest]
    if not all(roots):
        first = await _genesis_roots(source, chain.record(path[0]), count)
        roots = [root or first[i] for i, root in enumerate(roots)]
    return roots, tuple(record.number if record else -1 for record in newest)


def _newest(chain: Chain, path: Sequence[Digest], count: int) -> list[Record | None]:
    """The newest record of each fragment on a path; None where that is genesis."""
    newest: list[Record | None] = [None] * count
    for index in range(len(path) - 1, 0, -1):
        record = chain.at(path, index)
        place = record.number % count
        if record.slices and newest[place] is None:
            newest[place] = record
            if None not in newest:
                break
    return newest


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


def first_root(roots: Sequence[Digest]) -> Digest:
    """What a manifest calls the first state, from the roots of all fragments' first states."""
    return digest(genesis_blob(roots))


def genesis_blob(roots: Sequence[Digest]) -> bytes:
    """The content that a manifest's state root names: the roots of all fragments' first states."""
    return pack(list(roots))
