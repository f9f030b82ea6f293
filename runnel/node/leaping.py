"""Catching up by state: a peer that was away for long takes a pinned state instead of all results.

Members keep results for some rounds only, and a state costs as much as a few dozen of them. What
this peer learned stays: records on the way are settled with its residual as if followed one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from runnel.dht.blob_fetch import BlobFetcher
from runnel.errors import NetworkError, PeerError
from runnel.node.joining import Rebuild, Source
from runnel.node.pins import pins
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record, RecordKind
from runnel.node.state_download import Fetched, StateDownload
from runnel.protocols import Float32
from runnel.types import Digest

logger = logging.getLogger(__name__)

REPLAYED_WINDOWS = 16
"""Behind by more windows (a round of each fragment), a state is cheaper than results at four bits."""
_PAUSE_S = 0.5

States = dict[int, tuple[Float32, Float32]]
"""Both parts of a state by fragment."""


class Leaper:
    """Decides when to leap, and downloads what a leap needs. States are pinned each `every` rounds."""

    def __init__(self, state: ProtocolState, *, every: int, rebuild: Rebuild | None = None) -> None:
        """`rebuild` is asked for a state before it is downloaded."""
        self._state, self._every, self._rebuild = state, every, rebuild
        self._gone: set[Digest] = set()
        self._fetcher: BlobFetcher | None = None  # remembers who sent wrong bytes

    def miss(self, root: Digest) -> None:
        """Notes that no member has a result any more."""
        self._gone.add(root)

    def aim(self) -> Sequence[Digest]:
        """The path to a record to leap to, or nothing.

        From a branch that is given up further back than its states are kept there is no other way.
        """
        chain, target = self._state.chain, self._state.target
        if not target or not chain.prefers(target):
            self._gone.clear()
            return []
        meet = chain.common(target)
        pin = pins(chain, target, self._every)[0]
        first = chain.record(target[meet])
        settings = self._state.settings
        replayed = max(REPLAYED_WINDOWS * len(settings.fragment_sizes), settings.deepest_fork)
        far = len(target) - meet > replayed
        gone = any(piece.root in self._gone for piece in first.slices)
        needed = far or gone or self._state.parts_deeply(meet)
        path = target[: pin + 2]
        if not needed or pin + 1 < meet:
            return []
        unnamed = {f for f, record in self._changed(path).items() if record is None}
        return [] if unnamed and unnamed & self._rounds_since(meet) else path

    async def fetch(
        self, source: Source, path: Sequence[Digest], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Fetched, States] | None:
        """Brings all states that change up to the end of `path`; None if they cannot be had now.

        `sizes` are the words of both parts of a state, by fragment.
        """
        states: States = {}
        made = await self._rebuild(source, path) if self._rebuild is not None else None
        if made is not None:
            return made[0], {0: made[1]}
        if self._fetcher is None:
            self._fetcher = BlobFetcher(source.transport)
        download = StateDownload(self._fetcher, source.donors)
        try:
            for fragment, record in self._changed(path).items():
                if record is not None:
                    states[fragment] = await download.fetch(record.state_root, sizes[fragment])
        except (NetworkError, PeerError, TimeoutError) as error:
            logger.debug("the state after round %d cannot be had: %s", len(path) - 2, error)
            await asyncio.sleep(_PAUSE_S)
            return None
        return download.report(len(path) - 2), states

    def _rounds_since(self, place: int) -> set[int]:
        """Fragments of the rounds of our path from a place on."""
        chain, count = self._state.chain, len(self._state.settings.fragment_sizes)
        path = chain.path
        records = [chain.at(path, index) for index in range(place, len(path))]
        return {record.number % count for record in records if record.kind is RecordKind.ROUND}

    def _changed(self, path: Sequence[Digest]) -> dict[int, Record | None]:
        """The newest record on `path` of each fragment that changes on the way; None where that is genesis.

        Those are the fragments of records that `path` has and we have not followed, and all if records
        of ours are given up: there may be more of them by the time we land. (If our path leaves the
        one wanted only after the download began, the disk has the fragments that are missing.)
        """
        chain, count = self._state.chain, len(self._state.settings.fragment_sizes)
        meet, newest = chain.common(path), dict[int, Record | None]()
        changed = set(range(count)) if meet < len(chain.path) else set[int]()
        for index in range(len(path) - 1, -1, -1):
            record = chain.at(path, index)
            fragment = record.number % count
            if record.kind is RecordKind.ROUND and (index >= meet or fragment in changed):
                newest.setdefault(fragment, record)
            if index < meet and len(newest) >= len(changed):
                break
        return dict.fromkeys(changed) | newest
