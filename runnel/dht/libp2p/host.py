"""One host of libp2p for Python: TCP, Noise and yamux, and nothing else of it.

The only module that imports libp2p beside `runnel.dht.libp2p.stream`: import it late. Methods named
like those of `runnel.dht.daemon_control.DaemonControl` do the same as there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import psutil
import trio
from libp2p import new_swarm
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from runnel.dht.connections import RefusalError
from runnel.dht.libp2p.guest import TrioGuest
from runnel.dht.libp2p.stream import Libp2pStream
from runnel.dht.library_log import pass_on_as_debug
from runnel.dht.multiaddr import encode
from runnel.errors import NetworkError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from runnel.dht.identity import Identity

_log = logging.getLogger(__name__)
pass_on_as_debug("libp2p", _log)

MAX_CONNECTIONS = 256
"""Connections in all; each has buffers and tasks of its own."""

MAX_BUFFERED_BYTES = 64 * 1024 * 1024
"""What one connection may hold that nobody has read: libp2p only warns of senders beyond their window."""

GOODBYE_S = 1.0
"""How long closing may take per connection."""

_WATCH_EVERY_S = 0.25
_MAX_REASON_CHARACTERS = 300
_FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}

OnStream = Callable[[Libp2pStream, str], None]
"""Takes an incoming stream and the name of its protocol; runs on asyncio."""


class Libp2pHost:
    """Connections and streams; implements `runnel.dht.connections.Connections`."""

    def __init__(
        self, guest: TrioGuest, host: BasicHost, stop: trio.Event, addresses: list[str]
    ) -> None:
        self._guest = guest
        self._host = host
        self._stop = stop
        self._swarm = host.get_network()
        self._own_addresses = addresses
        self._dialling: WeakValueDictionary[PeerId, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def start(
        cls,
        guest: TrioGuest,
        identity: Identity,
        *,
        listen_host: str,
        port: int,
        announce: Iterable[str] = (),
    ) -> Libp2pHost:
        """A host that listens.

        Args:
            guest: where it runs; close it after this host.
            identity: who it is for others.
            listen_host: IP address; 0.0.0.0 is all of them.
            port: TCP, not 0.
            announce: multiaddresses to tell others instead of those it listens on.

        Raises:
            NetworkError: nothing can listen there.
        """
        addresses = [*announce] or reachable(listen_host, port)
        place = Multiaddr(_tcp(listen_host, port))
        host, stop = await guest.call(_run, guest, identity, place, addresses)
        return cls(guest, host, stop, addresses)

    async def identify(self, *, deadline: float) -> tuple[PeerId, list[str]]:
        """Our peer id and addresses."""
        del deadline  # known without asking
        return PeerId(self._host.get_id().to_bytes()), list(self._own_addresses)

    async def connect(self, peer: PeerId, addresses: Iterable[str], *, deadline: float) -> None:
        """Connects to `peer` at the first of `addresses` that answers, unless it is connected.

        Raises:
            RefusalError: it cannot be reached.
            ValueError: an address is not a multiaddress.
        """
        dialling = self._dialling.setdefault(peer, asyncio.Lock())
        reasons = []
        async with asyncio.timeout_at(deadline), dialling:
            if self._swarm.get_connections(ID(peer)):
                return
            for address in addresses:
                try:
                    await self._dial(peer, address)
                except (BaseLibp2pError, OSError) as error:
                    reasons.append(f"[{address}] {_reason(error)}")
                else:
                    return
        raise RefusalError(" * ".join(reasons) or "no address of it is known")

    async def _dial(self, peer: PeerId, address: str) -> None:
        """Connects at the first place that `address` names; libp2p itself resolves no name here."""
        error: Exception = OSError(f"lookup: {address} names no place")
        for place in await _resolved(address):
            try:
                await self._guest.call(self._swarm.dial_addr, Multiaddr(place), ID(peer))
            except (BaseLibp2pError, OSError) as failure:
                error = failure
            else:
                return
        raise error

    async def connected_peers(self, *, deadline: float) -> list[PeerId]:
        """Who is connected now, sorted; only peers of our kind of id."""
        del deadline
        return sorted(PeerId(peer.to_bytes()) for peer in self._host.get_connected_peers())

    async def find_addresses(self, peer: PeerId, *, deadline: float) -> list[str]:
        """What a connected peer said of itself."""
        del deadline
        try:
            known = self._host.get_peerstore().addrs(ID(peer))
        except BaseLibp2pError:
            return []
        return [str(place).partition("/p2p/")[0] for place in known]

    async def open_stream(self, peer: PeerId, name: str, *, deadline: float) -> Libp2pStream:
        """A stream to the handler of `name` at a connected peer.

        Raises:
            RefusalError: it is not connected any more, or does not serve `name`.
        """
        async with asyncio.timeout_at(deadline):
            try:
                stream = await self._guest.call(self._host.new_stream, ID(peer), [name])
            except (BaseLibp2pError, OSError) as error:
                raise RefusalError(_reason(error)) from error
        return Libp2pStream(self._guest, stream)

    def take_streams(self, name: str, on_stream: OnStream) -> None:
        """From now on incoming streams of `name` go to `on_stream`."""

        async def handle(stream: Any) -> None:
            bridge = Libp2pStream(self._guest, stream)
            on_stream(bridge, name)
            await bridge.wait_gone()

        self._host.set_stream_handler(name, handle)

    def leave_streams(self, name: str) -> None:
        """Ends what `take_streams` began: peers are told that `name` is not served."""
        self._host.remove_stream_handler(name)

    async def aclose(self) -> None:
        """Says goodbye on all connections, and stops listening. Idempotent."""
        try:
            async with asyncio.timeout(2 * GOODBYE_S):
                await self._guest.call(self._leave)
        except (OSError, TimeoutError) as error:
            _log.debug("the network was closed without goodbyes: %s", error)

    async def _leave(self) -> None:
        with trio.move_on_after(GOODBYE_S):
            async with trio.open_nursery() as nursery:
                for connection in self._swarm.get_connections():
                    nursery.start_soon(connection.close)
        self._stop.set()


async def _run(
    guest: TrioGuest, identity: Identity, place: Multiaddr, addresses: list[str]
) -> tuple[BasicHost, trio.Event]:
    """A host that listens at `place` until the event is set; on trio."""
    host, stop = _new_host(identity, addresses), trio.Event()
    told, listens = trio.open_memory_channel[bool](1)
    guest.spawn(_hold, host.get_network(), place, told, stop)
    if not await listens.receive():
        raise NetworkError(f"cannot listen on {place}: is the port taken?")
    return host, stop


async def _hold(
    swarm: Any, place: Multiaddr, told: trio.MemorySendChannel[bool], stop: trio.Event
) -> None:
    async with background_trio_service(swarm):
        told.send_nowait(await swarm.listen(place))
        with trio.CancelScope() as watching:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, swarm)
                await stop.wait()
                watching.cancel()


async def _watch(swarm: Any) -> None:
    """Ends connections whose other end sends what nobody reads, without regard to its window."""
    while True:
        await trio.sleep(_WATCH_EVERY_S)
        for connection in swarm.get_connections():
            muxed = connection.muxed_conn
            held = sum(map(len, muxed.stream_buffers.values()))
            if held > MAX_BUFFERED_BYTES:
                peer = PeerId(muxed.peer_id.to_bytes())
                _log.warning("peer %s sent %d bytes too many; disconnected", short(peer), held)
                await connection.close()


def _new_host(identity: Identity, addresses: list[str]) -> BasicHost:
    keys = create_new_key_pair(identity.seed())
    swarm = new_swarm(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, noise_privkey=create_noise_key().private_key)},
        muxer_opt={YAMUX: Yamux},
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=0,
            high_watermark=MAX_CONNECTIONS,
            max_connections=MAX_CONNECTIONS,
        ),
    )
    swarm.set_resource_manager(
        None
    )  # it refuses peers by the memory of the process, models included
    return BasicHost(
        network=swarm,
        announce_addrs=[Multiaddr(text) for text in addresses],
        disable_identify_address_discovery=True,
    )


async def _connect_nobody() -> None:
    """In place of what dials everybody that was ever heard of."""


def reachable(listen_host: str, port: int) -> list[str]:
    """Multiaddresses for others: the one listened on, or those of all interfaces, loopback last."""
    if not ipaddress.ip_address(listen_host).is_unspecified:
        return [_tcp(listen_host, port)]
    version = ipaddress.ip_address(listen_host).version
    found = []
    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            with contextlib.suppress(ValueError):  # a link's own address, or one with a zone
                ip = ipaddress.ip_address(entry.address)
                if ip.version == version and not ip.is_link_local:
                    found.append(ip)
    return [_tcp(str(ip), port) for ip in sorted(found, key=lambda ip: ip.is_loopback)]


def _tcp(host: str, port: int) -> str:
    return f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/{port}"


async def _resolved(address: str) -> list[str]:
    """`address` with numbers in place of a name; as it is if there is none.

    Raises:
        ValueError: not a multiaddress.
        OSError: nobody knows the name.
    """
    encode(address)
    _, kind, name, *rest = address.split("/")
    if kind not in _FAMILIES:
        return [address]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            name, None, family=_FAMILIES[kind], type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise OSError(f"lookup of {name}: {error.strerror or error}") from None
    hosts = dict.fromkeys(str(place[0]) for *_, place in found)
    return ["/".join(("", f"ip{ipaddress.ip_address(ip).version}", ip, *rest)) for ip in hosts]


def _reason(error: BaseException) -> str:
    """The innermost cause that says something, in one line: outer ones say that there was an error."""
    said = ""
    cause: BaseException | None = error
    while cause is not None:
        said = " ".join(str(cause).split()) or said
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        else:
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return said[:_MAX_REASON_CHARACTERS] or type(error).__name__
