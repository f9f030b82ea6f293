"""Asking a libp2p daemon for things: who am I, connect to, open a stream to, hand me streams of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runnel.dht import multiaddr
from runnel.dht.connections import RefusalError
from runnel.dht.daemon_messages import (
    Fields,
    RequestType,
    Response,
    decode_response,
    request,
)
from runnel.dht.identity import public_key_of
from runnel.dht.unix_stream import UnixStream
from runnel.errors import NetworkError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

_log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 4 * 1024 * 1024
_MAX_REASON_CHARACTERS = 1000
_ABOUT_PEERS = {RequestType.CONNECT, RequestType.STREAM_OPEN, RequestType.DHT}
_FIND_PEER = 0
_NOT_BALANCED = (3, 0)  # required: one handler per protocol, not several that take turns


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection of the daemon's: to whom, and where they were reached or came from."""

    peer: PeerId
    address: str


class DaemonControl:
    """The control socket of one daemon; implements `runnel.dht.connections.Connections`.

    Each request takes a connection of its own.

    Deadlines are loop times in seconds. All methods raise `NetworkError` if the daemon does not
    answer sensibly, and TimeoutError at the deadline.
    """

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path

    async def identify(self, *, deadline: float) -> tuple[PeerId, list[str]]:
        """The daemon's peer id and the addresses at which it believes to be reachable."""
        response = await self._ask(RequestType.IDENTIFY, deadline=deadline)
        if response.identity is None:
            raise NetworkError("the daemon did not say who it is; expected its peer id")
        peer, addresses = response.identity
        return PeerId(peer), _texts(addresses)

    async def connect(self, peer: PeerId, addresses: Iterable[str], *, deadline: float) -> None:
        """Connects to `peer` at one of `addresses`, or finds addresses by itself if there are none.

        Raises:
            RefusalError: it cannot be reached.
            ValueError: an address is not a multiaddress.
        """
        body: Fields = [(1, peer), *((2, multiaddr.encode(text)) for text in addresses)]
        await self._ask(RequestType.CONNECT, [*body, _timeout(3, deadline)], deadline=deadline)

    async def disconnect(self, peer: PeerId, *, deadline: float) -> None:
        """Drops all connections to `peer`."""
        await self._ask(RequestType.DISCONNECT, [(1, peer)], deadline=deadline)

    async def connected_peers(self, *, deadline: float) -> list[PeerId]:
        """Who the daemon is connected to now; only peers of our kind of id."""
        return sorted({one.peer for one in await self.connections(deadline=deadline)})

    async def connections(self, *, deadline: float) -> list[Connection]:
        """All connections to peers of our kind of id; several to one peer are possible."""
        response = await self._ask(RequestType.LIST_PEERS, deadline=deadline)
        return [
            Connection(PeerId(peer), address)
            for peer, addresses in response.peers
            if _is_ours(peer)
            for address in _texts(addresses) or [""]
        ]

    async def find_addresses(self, peer: PeerId, *, deadline: float) -> list[str]:
        """The addresses of `peer`: at once if it is connected, else by asking other daemons."""
        body: Fields = [(1, _FIND_PEER), (2, peer), _timeout(7, deadline)]
        try:
            response = await self._ask(RequestType.DHT, body, deadline=deadline)
        except RefusalError as error:
            _log.debug("no addresses of %s: %s", short(peer), error)
            return []
        return _texts(response.peers[0][1]) if response.peers else []

    async def open_stream(self, peer: PeerId, protocol: str, *, deadline: float) -> UnixStream:
        """A stream to the handler of `protocol` at `peer`.

        Raises:
            RefusalError: it cannot be reached, or does not serve `protocol`.
        """
        body: Fields = [(1, peer), (2, protocol.encode()), _timeout(3, deadline)]
        async with self._asking(RequestType.STREAM_OPEN, body, deadline=deadline) as stream:
            await self._answer(stream)
            stream.belongs_to(peer)
        return stream

    async def hand_over_streams(self, protocol: str, socket_path: str, *, deadline: float) -> None:
        """From now on incoming streams of `protocol` come as connections to `socket_path`."""
        body: Fields = [(1, multiaddr.unix(socket_path)), (2, protocol.encode()), _NOT_BALANCED]
        await self._ask(RequestType.STREAM_HANDLER, body, deadline=deadline)

    async def keep_streams(self, protocol: str, socket_path: str, *, deadline: float) -> None:
        """Ends what `hand_over_streams` began: peers are told that `protocol` is not served."""
        body: Fields = [(1, multiaddr.unix(socket_path)), (2, protocol.encode())]
        await self._ask(RequestType.REMOVE_STREAM_HANDLER, body, deadline=deadline)

    async def hold(self, *, deadline: float) -> UnixStream:
        """A connection that keeps the daemon alive: it ends itself when the last of these closes."""
        kind = RequestType.PERSISTENT_CONNECTION
        async with self._asking(kind, None, deadline=deadline) as stream:
            await self._answer(stream)
        return stream

    async def _ask(
        self, kind: RequestType, body: Fields | None = None, *, deadline: float
    ) -> Response:
        async with self._asking(kind, body, deadline=deadline) as stream:
            response = await self._answer(stream)
        stream.abort()
        return response

    @contextlib.asynccontextmanager
    async def _asking(
        self, kind: RequestType, body: Fields | None, *, deadline: float
    ) -> AsyncIterator[UnixStream]:
        """A connection on which a request has been sent; closed if anything goes wrong inside."""
        async with asyncio.timeout_at(deadline):
            try:
                stream = await UnixStream.connect(self._path)
            except OSError as error:
                raise NetworkError(
                    f"the network daemon does not answer at {self._path} ({error.strerror}); "
                    "it may be restarting: try again"
                ) from error
            try:
                await stream.write(request(kind, body))
                yield stream
            except RefusalError as error:
                stream.abort()
                if kind in _ABOUT_PEERS:
                    raise
                raise NetworkError(
                    f"the network daemon refused a {kind.name.lower()} request: {error}"
                ) from error
            except (OSError, ValueError) as error:
                stream.abort()
                if isinstance(error, TimeoutError):
                    raise
                raise NetworkError(
                    f"the network daemon broke off a {kind.name.lower()} request: {error}"
                ) from error
            except BaseException:
                stream.abort()
                raise

    async def _answer(self, stream: UnixStream) -> Response:
        response = decode_response(await stream.read_sized(max_bytes=MAX_RESPONSE_BYTES))
        if response.error is not None:
            raise RefusalError(" ".join(response.error.split())[:_MAX_REASON_CHARACTERS])
        return response


def _timeout(number: int, deadline: float) -> tuple[int, int]:
    """The field that tells the daemon when to give up: whole seconds, not before we do."""
    remaining_s = deadline - asyncio.get_running_loop().time()
    return number, max(1, math.ceil(min(remaining_s, 3600.0)))


def _texts(addresses: Iterable[bytes]) -> list[str]:
    """Those addresses that are of a kind known here."""
    texts = []
    for address in addresses:
        try:
            texts.append(multiaddr.decode(address))
        except ValueError as error:
            _log.debug("left out an address: %s", error)
    return texts


def _is_ours(peer: bytes) -> bool:
    try:
        public_key_of(PeerId(peer))
    except ValueError:
        _log.debug("left out a peer of another kind: %s", short(peer))
        return False
    return True
