"""A state of shared seeds that is not fetched: rebuilt from one that is at hand, by the log of the rounds since.

A round is some bytes and some passes over the weights, a state four bytes a weight. So a newcomer that
has the run's base, and whoever was away, need not fetch what a link takes longer for than the passes
take. Entries are proven by the records that name them, and the state by the record of its pin; if it
is another one, if nobody has an entry any more, or if it takes too long, the state is fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runnel.errors import InputFileError, NetworkError, PeerError, StorageError
from runnel.node.chain import Chain
from runnel.node.entry_chunks import EntryDownload, HistorySource, entry_names
from runnel.node.joining import Rebuild, Source, first_root
from runnel.node.keeper import Keeper
from runnel.node.records import Record
from runnel.node.runtime import PeerRuntime
from runnel.node.saved_states import State
from runnel.node.seed_vault import SeedVault
from runnel.node.state_download import Fetched
from runnel.optim.exchange import RoundResults
from runnel.optim.seed_methods import largest_payload, most_directions
from runnel.optim.seed_updates import Entries
from runnel.types import Digest, short

logger = logging.getLogger(__name__)

LINK_BYTES_S = 2.5e6
"""A home's downlink: what this one carries is not known before something was fetched."""
PASS_S = 1e-10
"""Of one direction, for each weight."""
ROUND_S = 2e-4
"""To read a round's record and entry, and to see what they say."""
LONGEST_S = 200.0
"""What a log may take by these rates if nobody asks for it, so that time is left to fetch the state."""
LOG_S = 6 * 3600.0
"""What it may take in fact if somebody does."""
_SLOWER = 3.0
_GRACE_S = 60.0
_READ_AT_ONCE = 1024
_PIECE_S = 1.0
_LEAST_PIECE = 64
"""Fewer directions in one pass cost more each."""
_TELL_S = 10.0
_TURNS = 2
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class RebuildParts:
    """What a rebuilding works with.

    Attributes:
        chain: of the peer.
        vault: knows the run's method and the rounds that are here.
        start: the place on a path up to which the state at hand has come.
        base: gives the state at the end of a path, to be changed in place; None if it is not at hand.
        disk: runs what may block.
        work: runs arithmetic, which nobody waits for who closes meanwhile.
        catch_up: one of `CATCH_UPS`.
    """

    chain: Chain
    vault: SeedVault
    start: Callable[[Sequence[Digest]], int]
    base: Callable[[Sequence[Digest]], Awaitable[State | None]]
    disk: Callable[..., Awaitable[Any]]
    work: Callable[..., Awaitable[Any]]
    catch_up: str


@dataclass(frozen=True, slots=True)
class _Way:
    """From the state after `start` names of a path to that of its end: the rounds, what that one is called, and what it costs."""

    path: Sequence[Digest]
    start: int
    wanted: Mapping[int, Digest]
    root: Digest
    seconds: float


class Rebuilder:
    """Makes states of pins out of the log. For the I/O thread; arithmetic runs on another one."""

    def __init__(self, parts: RebuildParts) -> None:
        self._parts = parts

    async def rebuild(self, source: Source, path: Sequence[Digest]) -> tuple[Fetched, State] | None:
        """The state at the end of a path, that of a pin; None if it is to be fetched instead."""
        parts = self._parts
        if parts.catch_up == "state":
            return None
        asked_for = parts.catch_up == "log"
        way = await parts.disk(self._way, path, parts.start(path))
        if way is None:
            return None
        limit_s = LOG_S if asked_for else _GRACE_S + _SLOWER * way.seconds
        try:
            async with asyncio.timeout(limit_s):
                return await self._go(source, way)
        except (NetworkError, PeerError, InputFileError, StorageError, TimeoutError) as error:
            logger.log(
                logging.WARNING if asked_for else logging.INFO,
                "the state of round %d is fetched, not rebuilt from the log: %s",
                len(path) - 2,
                str(error) or f"that took longer than {limit_s:.0f} s",
            )
            return None

    async def _go(self, source: Source, way: _Way) -> tuple[Fetched, State]:
        parts, began_s = self._parts, asyncio.get_running_loop().time()
        base = await parts.base(way.path[: way.start])
        if base is None:
            raise InputFileError(
                "this model does not have the values that the run began with (`join --base` gives them)"
            )
        history = HistorySource(source.transport, source.run, lambda: source.donors, parts.disk)
        download = EntryDownload(history, parts.vault.entries)
        await download.complete(way.path, way.wanted, turns=_TURNS, pause_s=_PAUSE_S)
        await self._replay(base, way)
        if way.wanted and await parts.work(parts.vault.store.root_of, base) != way.root:
            raise InputFileError("the log leads to another state than the one that was decided")
        fetched = Fetched(
            number=len(way.path) - 2,
            size_bytes=download.given.total(),
            kept_bytes=0,
            seconds=asyncio.get_running_loop().time() - began_s,
            bytes_by_donor={short(peer): size for peer, size in download.given.items()},
            liars=tuple(sorted(map(short, download.bad))),
            numbers=(len(way.path) - 2,),
            log_rounds=len(way.wanted),
        )
        return fetched, base

    def _way(self, path: Sequence[Digest], start: int) -> _Way | None:
        """What leads to the end of a path, if that is faster than a home's link brings the state; reads records.

        All that is needed of the records is taken here: a path that is not followed may be forgotten.
        """
        method, chain = self._parts.vault.store.method, self._parts.chain
        weights, contributions, wanted = self._parts.vault.store.sizes[0], 0, dict[int, Digest]()
        limit_s = min(LONGEST_S, 4 * weights / LINK_BYTES_S)
        seconds = ROUND_S * (len(path) - start)
        for first in range(start, len(path), _READ_AT_ONCE):
            places = range(first, min(len(path), first + _READ_AT_ONCE))
            records = [chain.at(path, index) for index in places]
            wanted |= entry_names(records)
            contributions += sum(len(record.shares) for record in records)
            passes_s = PASS_S * weights * most_directions(method, contributions)
            sent_s = contributions * largest_payload(method) / LINK_BYTES_S
            seconds = ROUND_S * (len(path) - start) + passes_s + sent_s
            if self._parts.catch_up != "log" and seconds > limit_s:
                return None
        return _Way(path, start, wanted, chain.record(path[-1]).state_root, seconds)

    async def _replay(self, state: State, way: _Way) -> None:
        """Takes a state through the rounds of a way, in place."""
        parts, numbers, entries = self._parts, list(way.wanted), list[bytes]()
        for start in range(0, len(numbers), _READ_AT_ONCE):
            block = {n: way.wanted[n] for n in numbers[start : start + _READ_AT_ONCE]}
            entries += await parts.disk(parts.vault.entries.all_of, block)
        rounds = (RoundResults((), [entry]) for entry in entries)
        changes = parts.vault.store.changes(state, rounds)
        while (some := await parts.work(next, changes, None)) is not None:
            await self._add(state, some, len(way.path) - 2)

    async def _add(self, state: State, changes: Entries, number: int) -> None:
        """Adds piece by piece, so that this peer can be stopped; a line now and then for who waits."""
        store, loop = self._parts.vault.store, asyncio.get_running_loop()
        pieces = changes.pieces(store.tensor_sizes, int(_PIECE_S / PASS_S), _LEAST_PIECE)
        began_s = told_s = loop.time()
        for place, (piece, expected) in enumerate(pieces):
            await self._parts.work(store.add_to, state, piece)
            now = loop.time()
            if not place and self._parts.catch_up != "log":
                _require_pace(now - began_s, PASS_S * expected)
            if now - told_s > _TELL_S:
                told_s = now
                logger.info(
                    "rebuilding the state of round %d from the log: piece %d of %d",
                    number,
                    place + 1,
                    len(pieces),
                )


def _require_pace(took_s: float, expected_s: float) -> None:
    """TimeoutError if this machine is far slower than others."""
    if took_s > _PIECE_S + 2 * _SLOWER * expected_s:
        raise TimeoutError(f"a pass of {expected_s:.2g} s took {took_s:.2g} s here")


def rebuild_of_newcomer(
    vault: Keeper, chain: Chain, genesis: Record, runtime: PeerRuntime, catch_up: str
) -> Rebuild | None:
    """What makes the state of a newcomer to a run of shared seeds, whose model may be what that began with."""
    if not isinstance(vault, SeedVault):
        return None

    async def base(_: Sequence[Digest]) -> State | None:
        roots = await runtime.load(vault.state_roots)
        return vault.store.shared(0) if first_root(roots) == genesis.state_root else None

    def start(_: Sequence[Digest]) -> int:
        """Its chain may be ahead of its state, as old records go to the disk while others come."""
        return 1

    parts = RebuildParts(chain, vault, start, base, runtime.disk, runtime.load, catch_up)
    return Rebuilder(parts).rebuild


def rebuild_of_member(
    vault: Keeper, chain: Chain, runtime: PeerRuntime, catch_up: str
) -> Rebuild | None:
    """What makes states for a peer of such a run that was away, from what its disk holds."""
    if not isinstance(vault, SeedVault):
        return None

    async def base(path: Sequence[Digest]) -> State:
        return await runtime.load(vault.states.read, chain, path, 0)

    parts = RebuildParts(chain, vault, chain.common, base, runtime.disk, runtime.load, catch_up)
    return Rebuilder(parts).rebuild
