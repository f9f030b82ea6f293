"""One peer's whole network: daemon, transport and directory, joined to others and kept so."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.dht.daemon import Daemon, DaemonOptions
from runnel.dht.daemon_transport import HivemindTransport
from runnel.dht.framing import TakeRoom, fresh_room
from runnel.dht.hivemind.dialling import Dialler
from runnel.dht.identity import to_base58
from runnel.dht.multiaddr import PeerAddress, parse_peer_address
from runnel.dht.peer_cache import PeerCache
from runnel.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from runnel.dht.hivemind.directory import HivemindDirectory
    from runnel.dht.identity import Identity

_log = logging.getLogger(__name__)

TEND_EVERY_S = 10.0
"""How often a network looks whether it is still connected, and notes who is there."""

MAX_SEEN = 32
"""Connected peers whose addresses are asked for at a time."""

_CONTROL_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSettings:
    """How a peer takes part in the network.

    Attributes:
        identity_path: this peer's key file.
        listen_host: IP address to listen on; 0.0.0.0 is all of them.
        port: TCP port; 0 chooses a free one, and keeps it while this network lives.
        bootstrap: multiaddresses of peers to join, each with ``/p2p/`` and a peer id at its end.
        cache_path: file in which peers seen are kept, for when no bootstrap answers; None for none.
        announce: multiaddresses to tell others instead of those found, for fixed forwarded ports.
        startup_timeout_s: until the daemon must answer.
        dial_timeout_s: until an address counts as unreachable.
        allow_alone: start even if no address answers, and go on trying in the background.
        port_mapping: ask the router to forward the port (UPnP, NAT-PMP).
        relay: reach peers behind NATs through relays, and serve as one.
    """

    identity_path: Path
    listen_host: str = "0.0.0.0"  # noqa: S104 - a peer is there to be reached
    port: int = 0
    bootstrap: tuple[str, ...] = ()
    cache_path: Path | None = None
    announce: tuple[str, ...] = ()
    startup_timeout_s: float = 20.0
    dial_timeout_s: float = 5.0
    allow_alone: bool = False
    port_mapping: bool = False
    relay: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535 (0: a free one)")
        if self.startup_timeout_s <= 0 or self.dial_timeout_s <= 0:
            raise ConfigError(
                f"startup_timeout_s is {self.startup_timeout_s}, dial_timeout_s "
                f"{self.dial_timeout_s}; expected more than 0 s"
            )


class HivemindNetwork:
    """A peer's transport and directory, and what keeps them joined to the rest of the swarm."""

    def __init__(
        self,
        daemon: Daemon,
        transport: HivemindTransport,
        directory: HivemindDirectory,
        dialler: Dialler,
    ) -> None:
        self._daemon = daemon
        self._transport = transport
        self._directory = directory
        self._dialler = dialler
        self._addresses: list[str] = []
        self._tending: asyncio.Task[None] | None = None
        daemon.on_restart(self._rejoin)

    @property
    def transport(self) -> HivemindTransport:
        """Streams to and from peers."""
        return self._transport

    @property
    def directory(self) -> HivemindDirectory:
        """Where peers are found."""
        return self._directory

    @property
    def daemon(self) -> Daemon:
        """The process that holds the connections."""
        return self._daemon

    def addresses(self) -> list[str]:
        """Multiaddresses at which this peer believes to be reachable, with its id; the newest known."""
        name = to_base58(self._daemon.identity.peer_id)
        return [f"{address}/p2p/{name}" for address in self._addresses]

    async def connect(self, address: str, *, timeout_s: float = 10.0) -> None:
        """Connects to the peer at `address` and makes it a neighbour in the directory.

        Raises:
            ConfigError: not a multiaddress with a peer id.
            NetworkError: the address and the step that failed.
        """
        await self._dialler.dial(_parsed(address), timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Closes everything, the daemon last, in a few seconds at most. Idempotent."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._daemon.aclose)
            stack.push_async_callback(self._directory.aclose)
            stack.push_async_callback(self._transport.aclose)
            tending, self._tending = self._tending, None
            if tending is not None:
                tending.cancel()
                await asyncio.wait([tending])

    async def _begin(self, *, allow_alone: bool) -> None:
        """Dials all known addresses once, then keeps at it in the background.

        Raises:
            NetworkError: there are addresses to join and none of them answers.
        """
        await self._look_at_ourselves()
        failures = await self._dialler.dial_all()
        if failures and not self._dialler.reached_any:
            what = f"none of {len(failures)} addresses can be joined: {'; '.join(failures)}"
            if not allow_alone:
                raise NetworkError(f"{what}; is one of these peers running and reachable?")
            _log.warning("%s; starting alone and trying again in the background", what)
        self._tending = asyncio.get_running_loop().create_task(self._tend())

    async def _rejoin(self) -> None:
        await self._look_at_ourselves()
        await self._dialler.dial_all(again=True)

    async def _tend(self) -> None:
        while True:
            try:
                await self._note_peers()
                await self._look_at_ourselves()
                await self._dialler.dial_all()
            except (NetworkError, TimeoutError) as error:
                _log.debug("looking after the network: %s", str(error) or "no answer in time")
            await asyncio.sleep(TEND_EVERY_S)

    async def _look_at_ourselves(self) -> None:
        deadline = asyncio.get_running_loop().time() + _CONTROL_S
        _, self._addresses = await self._daemon.control.identify(deadline=deadline)

    async def _note_peers(self) -> None:
        """Keeps the addresses of who is connected, for restarts and for dialling them later."""
        deadline = asyncio.get_running_loop().time() + _CONTROL_S
        control, seen = self._daemon.control, []
        for peer in (await control.connected_peers(deadline=deadline))[:MAX_SEEN]:
            found = await control.find_addresses(peer, deadline=deadline)
            addresses = [PeerAddress(address, peer) for address in found]
            self._transport.learn(peer, map(str, addresses))
            seen.extend(addresses[:2])
        await self._dialler.note(seen)


async def start_hivemind(
    settings: NetworkSettings, identity: Identity, take_room: TakeRoom = fresh_room
) -> HivemindNetwork:
    """Starts a network on the running loop and joins those who can be reached.

    Args:
        settings: see `NetworkSettings`.
        identity: the one in ``settings.identity_path``.
        take_room: gives the memory that messages arrive in.

    Raises:
        ConfigError: an address that is none, or another identity than the key file's.
        InputFileError: the key file is missing or damaged.
        NetworkError: the step that failed, for each address to join if it was that.
    """
    bootstrap = [_parsed(text) for text in settings.bootstrap]
    async with contextlib.AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        # Importing takes seconds of CPU and the daemon's start waits: both at once.
        importing = loop.run_in_executor(
            None, importlib.import_module, "runnel.dht.hivemind.directory"
        )
        try:
            daemon = await Daemon.start(_options(settings))
            stack.push_async_callback(daemon.aclose)
        finally:
            module = await importing
        if daemon.identity.peer_id != identity.peer_id:
            raise ConfigError(
                f"{settings.identity_path} holds the key of {to_base58(daemon.identity.peer_id)}, "
                f"expected that of {to_base58(identity.peer_id)}"
            )
        transport = await HivemindTransport.start(daemon, take_room)
        stack.push_async_callback(transport.aclose)
        directory: HivemindDirectory = await module.HivemindDirectory.start(daemon)
        stack.push_async_callback(directory.aclose)
        dialler = Dialler(
            daemon.control,
            directory.join,
            bootstrap=[one for one in bootstrap if one.peer != identity.peer_id],
            cache=PeerCache(settings.cache_path),
            timeout_s=settings.dial_timeout_s,
        )
        network = HivemindNetwork(daemon, transport, directory, dialler)
        await network._begin(allow_alone=settings.allow_alone)
        stack.pop_all()
        return network


def _options(settings: NetworkSettings) -> DaemonOptions:
    return DaemonOptions(
        identity_path=settings.identity_path,
        listen_host=settings.listen_host,
        port=settings.port,
        announce=settings.announce,
        port_mapping=settings.port_mapping,
        relay=settings.relay,
        startup_timeout_s=settings.startup_timeout_s,
    )


def _parsed(address: str) -> PeerAddress:
    try:
        return parse_peer_address(address)
    except ValueError as error:
        raise ConfigError(f"a peer's address: {error}") from None
