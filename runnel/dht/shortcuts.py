"""Replacing connections that lead through others by direct ones, where that has become possible."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from runnel.dht.connections import RefusalError
from runnel.dht.reachability import listens_at
from runnel.dht.routes import DIRECT, Route, endpoint
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from runnel.dht.daemon_control import DaemonControl

_log = logging.getLogger(__name__)

FIRST_TRY_S, MAX_TRY_S = 15.0, 600.0
"""How long after a peer was first reached through another one, and at most, a direct way is tried."""

_CONNECT_S = 5.0
_MAX_ADDRESSES = 4
_AT_ONCE = 8


class Shortcuts:
    """Tries the direct addresses of peers that are reached through others, less and less often.

    Nothing is given up before something answers there: the connection through others ends only then, and
    what was under way on it is sent again.
    """

    def __init__(
        self,
        control: DaemonControl,
        *,
        addresses: Callable[[PeerId], Iterable[str]],
        ours: Callable[[], Iterable[str]],
        meet: Callable[[PeerId], Awaitable[bool]],
    ) -> None:
        """`addresses` gives what is known of a peer, `ours` where we listen: others there are not meant.

        `meet` connects to a peer behind its router and ours, or says that it cannot.
        """
        self._control = control
        self._addresses, self._ours, self._meet = addresses, ours, meet
        self._due: dict[PeerId, tuple[float, float]] = {}

    async def look(self, known: Mapping[PeerId, Route]) -> None:
        """Tries what is due.

        Raises:
            NetworkError, TimeoutError: the daemon does not answer.
        """
        now = asyncio.get_running_loop().time()
        indirect = [peer for peer, route in known.items() if route is not DIRECT]
        self._due = {
            peer: self._due.get(peer, (now + FIRST_TRY_S, FIRST_TRY_S)) for peer in indirect
        }
        due = [peer for peer in indirect if now >= self._due[peer][0]][:_AT_ONCE]
        for peer in due:
            wait_s = min(2 * self._due[peer][1], MAX_TRY_S)
            self._due[peer] = (now + wait_s, wait_s)
        await asyncio.gather(*map(self._try, due))

    async def _try(self, peer: PeerId) -> None:
        ours = {endpoint(address) for address in self._ours()}
        direct = {address: endpoint(address) for address in self._addresses(peer)}
        usable = [(a, at) for a, at in direct.items() if at is not None and at not in ours]
        for address, (host, port) in usable[:_MAX_ADDRESSES]:
            if await listens_at(host, port) and await self._reconnect(peer, address):
                return
        await self._meet(peer)

    async def _reconnect(self, peer: PeerId, address: str) -> bool:
        deadline = asyncio.get_running_loop().time() + _CONNECT_S
        await self._control.disconnect(peer, deadline=deadline)
        try:
            await self._control.connect(peer, [address], deadline=deadline)
        except (RefusalError, TimeoutError) as error:
            _log.debug("no direct way to %s after all: %s", short(peer), error)
            return False
        return True
