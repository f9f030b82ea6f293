"""A state of shared seeds that is not fetched: rebuilt from one that is at hand, by the log of the rounds since.

A round is some bytes and some passes over the weights, a state four bytes a weight. So a newcomer that
has the run's base, and whoever was away, need not fetch what a link takes longer for than the passes
take. Entries are proven by the records that name them, and the state by the record of its pin; if it
is another one, or nobody has an entry any more, the state is fetched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runnel.errors import InputFileError, NetworkError, PeerError
from runnel.node.chain import Chain
from runnel.node.entry_chunks import EntryDownload, HistorySource, entry_names
from runnel.node.joining import Rebuild, Source, first_root
from runnel.node.keeper import Keeper
from runnel.node.records import Record, RecordKind
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
_ROUNDS_AT_ONCE = 1 << 14
_PIECE_S = 1.0
_LEAST_PIECE = 64
"""Fewer directions in one pass cost more each."""
_TELL_S = 10.0
_TURNS = 2


@dataclass(frozen=True, slots=True)
class RebuildParts:
    """What a rebuilding works with.

    Attributes:
        chain: of the peer.
        vault: knows the run's method and the rounds that are here.
        start: the place on a path up to which the state at hand has come.
        base: gives the state at the end of a path, to be changed in place; None if it is not at hand.
        disk: runs what may block.
        catch_up: one of `CATCH_UPS`.
    """

    chain: Chain
    vault: SeedVault
    start: Callable[[Sequence[Digest]], int]
    base: Callable[[Sequence[Digest]], Awaitable[State | None]]
    disk: Callable[..., Awaitable[Any]]
    catch_up: str


class Rebuilder:
    """Makes states of pins out of the log. For the I/O thread; arithmetic runs on another one."""

    def __init__(self, parts: RebuildParts) -> None:
        self._parts = parts

    async def rebuild(self, source: Source, path: Sequence[Digest]) -> tuple[Fetched, State] | None:
        """The state at the end of a path, that of a pin; None if it is to be fetched instead.

        Raises:
            StorageError: the disk refused to keep entries.
        """
        parts, began_s = self._parts, asyncio.get_running_loop().time()
        start = parts.start(path)
        if parts.catch_up == "state" or not await parts.disk(self._pays, path, start):
            return None
        history = HistorySource(source.transport, source.run, lambda: source.donors, parts.disk)
        download = EntryDownload(history, parts.chain, parts.vault.entries)
        try:
            base = await parts.base(path[:start])
            if base is None:
                return None
            await download.complete(path, start=start, turns=_TURNS)
            rounds = await self._replay(base, path, start)
        except (NetworkError, PeerError, InputFileError) as error:
            logger.info("the log up to round %d cannot be had: %s", len(path) - 2, error)
            return None
        if rounds and not await self._is_named(base, path):
            logger.warning(
                "the log leads to another state than the one of round %d: that is fetched instead",
                len(path) - 2,
            )
            return None
        fetched = Fetched(
            number=len(path) - 2,
            size_bytes=download.given.total(),
            kept_bytes=0,
            seconds=asyncio.get_running_loop().time() - began_s,
            bytes_by_donor={short(peer): size for peer, size in download.given.items()},
            liars=tuple(map(short, download.bad)),
            numbers=(len(path) - 2,),
            log_rounds=rounds,
        )
        return fetched, base

    def _pays(self, path: Sequence[Digest], start: int) -> bool:
        """Whether a home's link takes longer for the state than for the log, with the passes of that; reads records."""
        method, chain = self._parts.vault.store.method, self._parts.chain
        weights, contributions = self._parts.vault.store.sizes[0], 0
        state_s, rounds_s = 4 * weights / LINK_BYTES_S, ROUND_S * (len(path) - start)
        for index in range(start, len(path)):
            contributions += len(chain.at(path, index).shares)
            passes_s = PASS_S * weights * most_directions(method, contributions)
            log_s = rounds_s + passes_s + contributions * largest_payload(method) / LINK_BYTES_S
            if self._parts.catch_up == "auto" and log_s > state_s:
                return False
        return True

    async def _replay(self, state: State, path: Sequence[Digest], start: int) -> int:
        """Takes a state through the rounds of a path from a place on; how many they were."""
        parts, rounds = self._parts, 0
        for first in range(start, len(path), _ROUNDS_AT_ONCE):
            places = range(first, min(len(path), first + _ROUNDS_AT_ONCE))
            entries = await parts.disk(self._entries_of, path, places)
            results = [RoundResults((), [entry]) for entry in entries]
            changes, rest = await _beside(parts.vault.store.changes_of, state, results)
            await self._add(state, changes, places.stop - 2)
            state[1][:] = rest
            rounds += len(entries)
        return rounds

    async def _add(self, state: State, changes: Entries, number: int) -> None:
        """Adds piece by piece, so that this peer can be stopped; a line now and then for who waits."""
        store, loop = self._parts.vault.store, asyncio.get_running_loop()
        piece, told_s = max(_LEAST_PIECE, int(_PIECE_S / PASS_S / state[0].size)), loop.time()
        for start in range(0, len(changes), piece):
            await _beside(store.add_to, state, changes.part(start, start + piece))
            if loop.time() - told_s > _TELL_S:
                told_s, done = loop.time(), min(start + piece, len(changes))
                logger.info(
                    "rebuilding the state of round %d from the log: %d of %d directions",
                    number,
                    done,
                    len(changes),
                )

    def _entries_of(self, path: Sequence[Digest], places: range) -> list[bytes]:
        chain = self._parts.chain
        records = (chain.at(path, index) for index in places)
        return self._parts.vault.entries.all_of(entry_names(records))

    async def _is_named(self, state: State, path: Sequence[Digest]) -> bool:
        """Whether the record at the end of a path names the whole of a state."""
        record = self._parts.chain.record(path[-1])
        root = await _beside(self._parts.vault.store.root_of, state)
        return record.kind is RecordKind.ROUND and root == record.state_root


def rebuild_of_newcomer(
    vault: Keeper, chain: Chain, genesis: Record, catch_up: str
) -> Rebuild | None:
    """What makes the state of a newcomer to a run of shared seeds, whose model may be what that began with."""
    if not isinstance(vault, SeedVault):
        return None

    async def base(_: Sequence[Digest]) -> State | None:
        roots = await _beside(vault.state_roots)
        return vault.store.shared(0) if first_root(roots) == genesis.state_root else None

    # its chain goes ahead of its state: old records go to the disk while others come
    return Rebuilder(RebuildParts(chain, vault, lambda _: 1, base, _beside, catch_up)).rebuild


def rebuild_of_member(
    vault: Keeper, chain: Chain, runtime: PeerRuntime, catch_up: str
) -> Rebuild | None:
    """What makes states for a peer of such a run that was away, from what its disk holds."""
    if not isinstance(vault, SeedVault):
        return None

    async def base(path: Sequence[Digest]) -> State:
        return await runtime.codec(vault.states.read, chain, path, 0)

    parts = RebuildParts(chain, vault, chain.common, base, runtime.disk, catch_up)
    return Rebuilder(parts).rebuild


async def _beside(job: Callable[..., Any], *args: Any) -> Any:
    """What a job gives that blocks, on another thread."""
    return await asyncio.get_running_loop().run_in_executor(None, job, *args)
