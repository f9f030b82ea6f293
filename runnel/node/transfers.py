"""Bulk data under way from and to this peer: its slices to their reducers, results to it. Times its link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from runnel.errors import NetworkError, PeerError
from runnel.node.actions import Action, Fetch, Scatter
from runnel.node.bulk import Bulk, GoneError, PayloadSlice, Wanted
from runnel.node.keeper import Keeper
from runnel.node.pace import LinkMeter
from runnel.node.protocol import RoundProtocol
from runnel.node.slots import Slots
from runnel.types import Digest, PeerId, short

_RETRY_S = 0.5
_FETCH_S = 4.0
_MARGIN = 1.5
"""How much longer than a link's rate says a result may take before another holder is asked."""
_FETCHES = 8
"""Results on their way at once."""
_MOST_PATIENT = 8.0
"""By how much more than usual a link is given that gets not even one result in time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferParts:
    """What transfers work with.

    Attributes:
        codec: runs a job on the codec thread.
        spawn: starts a task that somebody owns.
        post: carries out the protocol's actions.
        near: who may have a result beside those that are known to, best first.
        miss: called with a result that all who could be asked no longer have.
        max_slice_bytes: the largest result.
    """

    protocol: RoundProtocol
    vault: Keeper
    bulk: Bulk
    codec: Callable[..., Awaitable[Any]]
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    post: Callable[[Sequence[Action]], None]
    near: Callable[[], Sequence[PeerId]]
    miss: Callable[[Digest], None]
    max_slice_bytes: int


class Transfers:
    """Slices and results under way."""

    def __init__(self, parts: TransferParts) -> None:
        self._parts = parts
        self._scattering: dict[Scatter, asyncio.Task[None]] = {}
        self._fetching: set[Digest] = set()
        self._slots, self._downlink = Slots(_FETCHES), LinkMeter()
        self._patience, self._size_bytes = 1.0, 0

    def scatter(self, action: Scatter) -> None:
        """Sends a slice to a reducer; what fails is tried again by the protocol."""
        if action not in self._scattering:
            task = self._parts.spawn(self._scatter(action), "driver:scatter")
            self._scattering[action] = task
            task.add_done_callback(lambda _: self._scattering.pop(action, None))

    def fetch(self, action: Fetch) -> None:
        """Gets a result from whoever has it."""
        if action.root not in self._fetching:
            self._fetching.add(action.root)
            self._parts.spawn(self._fetch(action), "driver:fetch")

    def trim(self) -> None:
        """Stops sending slices that come too late: they keep the link from those that do not."""
        for action, task in self._scattering.items():
            if not self._is_wanted(action):
                task.cancel()

    def _is_wanted(self, action: Scatter) -> bool:
        state = self._parts.protocol.state
        place = state.rounds.get(action.key)
        if place is None:
            return False
        results = place.slices[action.slice_index].results
        return not any(result.root in state.held for result in results)

    async def _scatter(self, action: Scatter) -> None:
        if not self._is_wanted(action):
            return  # decided while this waited for the disk
        contributions = self._parts.vault.contributions
        payload, path = contributions.slice_with_path(action.key, action.slice_index)
        piece = PayloadSlice(action.key, action.slice_index, action.commitment, path, payload)
        try:
            await self._send(action, piece)
        except (PeerError, NetworkError, TimeoutError) as error:
            logger.debug("slice %d to %s: %s", action.slice_index, short(action.to), error)
            await asyncio.sleep(_RETRY_S)
            self._parts.protocol.scatter_failed(action.key, action.slice_index, action.to)

    async def _send(self, action: Scatter, piece: PayloadSlice) -> None:
        loop, state = asyncio.get_running_loop(), self._parts.protocol.state
        moved, meter = 0, state.deadlines.pace.meter
        meter.begin(loop.time())
        try:
            deadline = loop.time() + state.settings.limits.ceiling_s
            await self._parts.bulk.scatter(action.to, piece, deadline=deadline)
            moved = len(piece.payload)
        except asyncio.CancelledError:
            if not state.members.is_overdue(action.to):
                moved = len(piece.payload)  # not all of it: the link is slower than that
            raise
        finally:
            meter.end(moved, loop.time())

    async def _fetch(self, action: Fetch) -> None:
        parts, state = self._parts, self._parts.protocol.state
        near = parts.near()
        holders = [peer for peer in dict.fromkeys((*action.holders, *near)) if peer != state.me]
        holders.sort(key=state.members.is_overdue)
        try:
            async with self._slots.slot():
                data = await self._get(action, holders)
        except (NetworkError, GoneError) as error:
            logger.debug("%s", error)
            if isinstance(error, GoneError):
                parts.miss(action.root)
            elif self._slots.width > 1:
                self._slots.too_slow()
            else:
                self._patience = min(2 * self._patience, _MOST_PATIENT)
            await asyncio.sleep(_RETRY_S)
            self._fetching.discard(action.root)
            parts.protocol.fetch_failed(action.root)
            return
        self._slots.in_time()
        self._patience = max(1.0, self._patience / 2)
        await parts.codec(parts.vault.results.keep, action.root, data)
        self._fetching.discard(action.root)
        parts.post(parts.protocol.result_held(action.root, asyncio.get_running_loop().time()))

    async def _get(self, action: Fetch, holders: Sequence[PeerId]) -> memoryview:
        loop, deadlines = asyncio.get_running_loop(), self._parts.protocol.state.deadlines
        bits = 8 * (action.size_bytes or self._size_bytes) * self._slots.taken
        usual_s = max(deadlines.data.deadline_s(), _MARGIN * bits / self._downlink.bits_s())
        most = self._parts.max_slice_bytes
        wanted = Wanted(
            root=action.root,
            holders=holders,
            size_bytes=action.size_bytes,
            max_bytes=min(action.size_bytes or most, most),
            usual_s=usual_s,
            patience_s=self._patience * max(_FETCH_S, 2 * deadlines.data_s, 2 * usual_s),
        )
        moved = 0
        self._downlink.begin(loop.time())
        try:
            data = await self._parts.bulk.fetch(wanted)
            moved = self._size_bytes = len(data)
            return data
        finally:
            self._downlink.end(moved, loop.time())
