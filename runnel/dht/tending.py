"""Keeps a peer connected: dials what it knows, looks who is there, and remembers them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from runnel.dht.identity import to_base58
from runnel.dht.multiaddr import PeerAddress, parse_peer_address
from runnel.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from runnel.dht.connections import Connections
    from runnel.dht.dialling import Dialler
    from runnel.types import PeerId

_log = logging.getLogger(__name__)

TEND_EVERY_S = 10.0
"""How often a network looks whether it is still connected, and notes who is there."""

MAX_SEEN = 32
"""Connected peers whose addresses are asked for at a time."""

_CONTROL_S = 5.0
_NAMED = 3
"""Addresses that failed and are named; all of them stand in the log at level debug."""

Learn = Callable[["PeerId", Iterable[str]], None]
Also = Callable[[Sequence[str]], Awaitable[None]]
"""What else is to be looked after from time to time; gets the addresses at which we listen."""


async def _nothing(_: Sequence[str]) -> None:
    """Where there is nothing else."""


class Tending:
    """The part of a network that looks after its connections, whatever makes them."""

    def __init__(
        self, connections: Connections, dialler: Dialler, learn: Learn, also: Also = _nothing
    ) -> None:
        """`learn` is told where connected peers are; `also` is done after each look."""
        self._connections = connections
        self._dialler = dialler
        self._learn = learn
        self._also = also
        self._addresses: list[str] = []
        self._name = ""
        self._tending: asyncio.Task[None] | None = None

    def addresses(self) -> list[str]:
        """Multiaddresses at which this peer believes to be reachable, with its id; the newest known."""
        return [f"{address}/p2p/{self._name}" for address in self._addresses]

    async def begin(self, *, allow_alone: bool) -> None:
        """Dials all known addresses once, then keeps at it in the background.

        Raises:
            NetworkError: there are addresses to join and none of them answers.
        """
        for peer, addresses in self._dialler.known().items():
            self._learn(peer, addresses)  # whoever is late now is dialled again when it is needed
        await self._look_at_ourselves()
        failures = await self._dialler.dial_all()
        if failures and not self._dialler.reached_any:
            named = "; ".join(failures[:_NAMED])
            if len(failures) > _NAMED:
                named += f"; and {len(failures) - _NAMED} more"
            what = f"none of {len(failures)} addresses can be joined: {named}"
            if not allow_alone:
                raise NetworkError(f"{what}; is one of these peers running and reachable?")
            _log.warning("%s; starting alone and trying again in the background", what)
        self._tending = asyncio.get_running_loop().create_task(self._tend())

    async def rejoin(self) -> None:
        """Begins again with what is known: all connections were lost."""
        await self._look_at_ourselves()
        await self._dialler.dial_all(again=True)

    async def connect(self, address: str, *, timeout_s: float) -> None:
        """See `runnel.dht.network.Network.connect`."""
        await self._dialler.dial(parsed(address), timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Stops looking. Idempotent."""
        tending, self._tending = self._tending, None
        if tending is not None:
            tending.cancel()
            await asyncio.wait([tending])

    async def _tend(self) -> None:
        while True:
            try:
                await self._note_peers()
                await self._look_at_ourselves()
                await self._dialler.dial_all()
                await self._also(self._addresses)
            except (NetworkError, TimeoutError) as error:
                _log.debug("looking after the network: %s", str(error) or "no answer in time")
            await asyncio.sleep(TEND_EVERY_S)

    async def _look_at_ourselves(self) -> None:
        deadline = asyncio.get_running_loop().time() + _CONTROL_S
        peer, self._addresses = await self._connections.identify(deadline=deadline)
        self._name = to_base58(peer)

    async def _note_peers(self) -> None:
        """Keeps the addresses of who is connected, for restarts and for dialling them later."""
        deadline = asyncio.get_running_loop().time() + _CONTROL_S
        connections, seen = self._connections, []
        for peer in (await connections.connected_peers(deadline=deadline))[:MAX_SEEN]:
            found = await connections.find_addresses(peer, deadline=deadline)
            addresses = [PeerAddress(address, peer) for address in found]
            self._learn(peer, map(str, addresses))
            seen.extend(addresses[:2])
        await self._dialler.note(seen)


def parsed(address: str) -> PeerAddress:
    """The peer address that a person gave.

    Raises:
        ConfigError: it is none.
    """
    try:
        return parse_peer_address(address)
    except ValueError as error:
        raise ConfigError(f"a peer's address: {error}") from None
