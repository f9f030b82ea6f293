"""One peer's whole network: daemon, transport and directory, joined to others and kept so."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from runnel.clock import SystemClock
from runnel.dht.daemon import Daemon, DaemonOptions
from runnel.dht.daemon_transport import HivemindTransport
from runnel.dht.dialling import Dialler
from runnel.dht.directory_service import DirectoryService
from runnel.dht.framing import TakeRoom, fresh_room
from runnel.dht.hivemind.late_directory import LateDirectory
from runnel.dht.identity import to_base58
from runnel.dht.middle import Middle
from runnel.dht.network import NetworkSettings, promise, take_back
from runnel.dht.peer_cache import PeerCache
from runnel.dht.tending import Tending, parsed
from runnel.dht.throttle import Throttle
from runnel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runnel.dht.identity import Identity
    from runnel.types import PeerId


class HivemindNetwork:
    """A peer's transport and directory, and what keeps them joined to the rest of the swarm."""

    def __init__(
        self,
        daemon: Daemon,
        transport: HivemindTransport,
        directory: LateDirectory,
        dialler: Dialler,
        middle: Middle,
    ) -> None:
        self._daemon = daemon
        self._transport = transport
        self._directory = directory
        self._middle = middle
        self._service = DirectoryService(transport, directory, directory.records, SystemClock())
        self._tending = Tending(daemon.control, dialler, transport.learn, middle.tend)
        daemon.on_restart(self._tending.rejoin)

    @property
    def transport(self) -> HivemindTransport:
        """Streams to and from peers."""
        return self._transport

    @property
    def directory(self) -> LateDirectory:
        """Where peers are found."""
        return self._directory

    @property
    def port(self) -> int:
        """The TCP port on which this peer listens."""
        return self._daemon.port

    @property
    def daemon(self) -> Daemon:
        """The process that holds the connections."""
        return self._daemon

    @property
    def middle(self) -> Middle:
        """What stands between peers that cannot meet: who is reached how, and who helps whom."""
        return self._middle

    def addresses(self) -> list[str]:
        """Multiaddresses at which this peer believes to be reachable, with its id; the newest known.

        Those that others have tried come first, those that lead through other peers last.
        """
        name = to_base58(self._daemon.identity.peer_id)
        tried, through_others = self._middle.tried_addresses(), self._middle.borrowed_addresses()
        others = [f"{address}/p2p/{name}" for address in through_others]
        known = [f"{address}/p2p/{name}" for address in tried]
        return list(dict.fromkeys([*known, *self._tending.addresses(), *others]))

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Notes where `peer` may be reached; see `runnel.dht.address_book.AddressBook`."""
        self._transport.learn(peer, addresses)

    async def connect(self, address: str, *, timeout_s: float = 10.0) -> None:
        """Connects to the peer at `address` and makes it a neighbour in the directory.

        Raises:
            ConfigError: not a multiaddress with a peer id.
            NetworkError: the address and the step that failed.
        """
        await self._tending.connect(address, timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Closes everything, the daemon last, in a few seconds at most. Idempotent."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._daemon.aclose)
            stack.push_async_callback(self._directory.aclose)
            stack.push_async_callback(self._transport.aclose)
            stack.push_async_callback(self._middle.aclose)
            stack.push_async_callback(self._tending.aclose)

    async def begin(self, *, allow_alone: bool) -> None:
        """Joins others and answers peers that have no directory; see `Tending.begin`."""
        await self._service.serve()
        await self._tending.begin(allow_alone=allow_alone)


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
    bootstrap = [parsed(text) for text in settings.bootstrap]
    async with contextlib.AsyncExitStack() as stack:
        promise("hivemind")
        stack.callback(take_back, "hivemind")
        daemon = await Daemon.start(_options(settings))
        stack.push_async_callback(daemon.aclose)
        if daemon.identity.peer_id != identity.peer_id:
            raise ConfigError(
                f"{settings.identity_path} holds the key of {to_base58(daemon.identity.peer_id)}, "
                f"expected that of {to_base58(identity.peer_id)}"
            )
        transport = await HivemindTransport.start(
            daemon, take_room, Throttle(settings.max_upload_bits_s)
        )
        stack.push_async_callback(transport.aclose)
        directory = LateDirectory(daemon, transport, SystemClock())
        stack.push_async_callback(directory.aclose)
        dialler = Dialler(
            daemon.control,
            directory.join,
            bootstrap=[one for one in bootstrap if one.peer != identity.peer_id],
            cache=PeerCache(settings.cache_path),
            timeout_s=settings.dial_timeout_s,
        )
        middle = Middle(daemon, transport, listens=not settings.dial_out)
        await middle.serve(relay=settings.relay)
        network = HivemindNetwork(daemon, transport, directory, dialler, middle)
        await network.begin(allow_alone=settings.allow_alone)
        stack.pop_all()
        return network


def _options(settings: NetworkSettings) -> DaemonOptions:
    return DaemonOptions(
        identity_path=settings.identity_path,
        listen_host=settings.listen_host,
        port=settings.port,
        announce=settings.announce,
        port_mapping=settings.port_mapping,
        dial_out=settings.dial_out,
        startup_timeout_s=settings.startup_timeout_s,
    )
