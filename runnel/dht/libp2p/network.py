"""One peer's whole network without a daemon: host, transport and directory, joined and kept so."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from runnel.clock import SystemClock
from runnel.dht.asked_directory import AskedDirectory
from runnel.dht.daemon_process import free_port
from runnel.dht.dialling import Dialler
from runnel.dht.framing import TakeRoom, fresh_room
from runnel.dht.libp2p.transport import Libp2pTransport
from runnel.dht.network import NetworkSettings, promise, take_back
from runnel.dht.peer_cache import PeerCache
from runnel.dht.tending import Tending, parsed
from runnel.dht.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runnel.dht.identity import Identity
    from runnel.types import PeerId


class Libp2pNetwork:
    """A peer's transport and directory in this process; implements `runnel.dht.network.Network`."""

    def __init__(
        self,
        transport: Libp2pTransport,
        directory: AskedDirectory,
        tending: Tending,
        port: int,
        owned: contextlib.AsyncExitStack,
    ) -> None:
        """Closes `owned` at its end."""
        self._transport = transport
        self._directory = directory
        self._tending = tending
        self._port = port
        self._owned = owned

    @property
    def transport(self) -> Libp2pTransport:
        """Streams to and from peers."""
        return self._transport

    @property
    def directory(self) -> AskedDirectory:
        """Where peers are found."""
        return self._directory

    @property
    def port(self) -> int:
        """The TCP port on which this peer listens."""
        return self._port

    @property
    def middle(self) -> None:
        """Nothing helps peers that cannot meet: there are no relays here."""
        return

    def addresses(self) -> list[str]:
        """Multiaddresses at which this peer believes to be reachable, with its id."""
        return self._tending.addresses()

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Notes where `peer` may be reached; see `runnel.dht.address_book.AddressBook`."""
        self._transport.learn(peer, addresses)

    async def connect(self, address: str, *, timeout_s: float = 10.0) -> None:
        """Connects to the peer at `address`.

        Raises:
            ConfigError: not a multiaddress with a peer id.
            NetworkError: the address and the step that failed.
        """
        await self._tending.connect(address, timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Closes everything in a few seconds at most. Idempotent."""
        await self._owned.aclose()


async def start_libp2p(
    settings: NetworkSettings, identity: Identity, take_room: TakeRoom = fresh_room
) -> Libp2pNetwork:
    """Starts a network on the running loop and joins those who can be reached.

    A thread has one such network at a time: trio is the guest of its loop.

    Args:
        settings: see `NetworkSettings`; nothing here asks routers for ports, or relays.
        identity: the one in ``settings.identity_path``.
        take_room: gives the memory that messages arrive in.

    Raises:
        ConfigError: an address that is none, or hivemind was imported in this process.
        NetworkError: the port is taken, or the step that failed, for each address to join.
    """
    bootstrap = [parsed(text) for text in settings.bootstrap]
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        promise("libp2p")
        stack.callback(take_back, "libp2p")
        # Importing takes a second of CPU: the loop goes on meanwhile.
        hosts: Any = await loop.run_in_executor(
            None, importlib.import_module, f"{__package__}.host"
        )
        guest = await hosts.TrioGuest.start()
        stack.push_async_callback(guest.aclose)
        port = free_port(settings.listen_host, settings.port)
        host = await hosts.Libp2pHost.start(
            guest,
            identity,
            listen_host=settings.listen_host,
            port=port,
            announce=settings.announce,
        )
        stack.push_async_callback(host.aclose)
        transport = Libp2pTransport(
            host, identity.peer_id, take_room, Throttle(settings.max_upload_bits_s)
        )
        stack.push_async_callback(transport.aclose)
        directory = AskedDirectory(transport, host, identity, SystemClock())
        await directory.serve()
        dialler = Dialler(
            host,
            directory.join,
            bootstrap=[one for one in bootstrap if one.peer != identity.peer_id],
            cache=PeerCache(settings.cache_path),
            timeout_s=settings.dial_timeout_s,
        )
        tending = Tending(host, dialler, transport.learn)
        stack.push_async_callback(tending.aclose)
        await tending.begin(allow_alone=settings.allow_alone)
        return Libp2pNetwork(transport, directory, tending, port, stack.pop_all())
