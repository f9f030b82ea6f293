"""Streams to and from peers through the libp2p daemon; identities are proved by its handshakes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from runnel.dht.address_book import AddressBook
from runnel.dht.connections import RefusalError
from runnel.dht.daemon_messages import decode_stream_head
from runnel.dht.framing import FramedStream, TakeRoom, fresh_room
from runnel.dht.incoming import MAX_STREAMS, PREFIX, ByteHandler, Incoming
from runnel.dht.throttle import Throttle
from runnel.dht.traffic import ByteCounter
from runnel.dht.unix_stream import UnixStream
from runnel.errors import NetworkError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runnel.dht.daemon import Daemon
    from runnel.protocols import StreamHandler

_log = logging.getLogger(__name__)

PATIENCE_S = 1.5
"""How long a peer may take to be reached before others are asked to help, beside it."""

HEAD_S = 5.0
"""How long the daemon may take to say whose stream it hands over."""

_REGISTER_S = 10.0
_UNREGISTER_S = 1.0
_BACKOFF_STEP_S = 0.25
_MAX_HEAD_BYTES = 4096
_NOT_SERVED = "protocols not supported"
_NOT_TRIED = "dial backoff"


FindDetours = Callable[[PeerId, float], Awaitable[Sequence[str]]]
"""Gives addresses of a peer that lead through others, the best first, by a deadline."""


class HivemindTransport:
    """Streams through hivemind's daemon; implements `runnel.protocols.Transport`.

    Survives restarts of the daemon: streams that were open end, handlers stay.
    """

    def __init__(
        self,
        daemon: Daemon,
        take_room: TakeRoom = fresh_room,
        throttle: Throttle | None = None,
    ) -> None:
        """`take_room` gives the memory that messages arrive in, `throttle` caps what is sent."""
        self.throttle = throttle or Throttle()
        self._daemon = daemon
        self._traffic = ByteCounter()
        self._incoming = Incoming(self._traffic, take_room, self.throttle)
        self._book = AddressBook(daemon.identity.peer_id)
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[UnixStream] = set()
        self._find_detours: FindDetours | None = None

    @classmethod
    async def start(
        cls,
        daemon: Daemon,
        take_room: TakeRoom = fresh_room,
        throttle: Throttle | None = None,
    ) -> HivemindTransport:
        """A transport over `daemon`, which it does not own: close it first."""
        transport = cls(daemon, take_room, throttle)
        loop = asyncio.get_running_loop()
        transport._server = await loop.create_unix_server(
            lambda: UnixStream(transport._accept), daemon.folder.stream_socket
        )
        daemon.on_restart(transport._register_all)
        return transport

    @property
    def local_id(self) -> PeerId:
        """This peer."""
        return self._daemon.identity.peer_id

    @property
    def traffic(self) -> ByteCounter:
        """Bytes by purpose and direction, framing included."""
        return self._traffic

    @property
    def num_refused(self) -> int:
        """Incoming streams that were closed because their peer, or all together, had too many."""
        return self._incoming.num_refused

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Notes where `peer` may be reached; see `runnel.dht.address_book.AddressBook.learn`."""
        self._book.learn(peer, addresses)

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """What `learn` was told of `peer` last, without its id at the end."""
        return self._book.of(peer)

    def detour_by(self, find: FindDetours) -> None:
        """From now on peers that cannot be reached directly are tried at the addresses `find` gives."""
        self._find_detours = find

    async def open(self, peer: PeerId, protocol: str, *, deadline: float) -> FramedStream:
        """A new stream to `peer`; see `runnel.protocols.Transport.open`.

        Waits while the daemon restarts, and while it keeps off a peer that it could not reach a
        moment ago.
        """
        if self._server is None:
            raise NetworkError("this transport is closed")
        async with asyncio.timeout_at(deadline):
            await self._daemon.ready()
            stream = await self._dial(peer, protocol, deadline)
        self._keep(stream)
        return self._incoming.framed(stream, protocol)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Runs `handler` for each incoming stream of `protocol`; the stream closes when it returns."""
        if self._server is None:
            raise NetworkError("this transport is closed")
        self._incoming.handle(protocol, handler)
        await self._register(PREFIX + protocol)

    async def serve_bytes(self, name: str, handler: ByteHandler) -> None:
        """Runs `handler` for each incoming stream of a protocol that is not of our frames.

        Also of one that the daemon serves by itself: it does not any more.
        """
        if self._server is None:
            raise NetworkError("this transport is closed")
        self._incoming.handle_bytes(name, handler)
        await self._register(name)

    async def aclose(self) -> None:
        """Stops serving, closes all streams, cancels all handlers. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        for stream in tuple(self._open):
            stream.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._unregister_all()

    async def _dial(self, peer: PeerId, protocol: str, deadline: float) -> UnixStream:
        """A stream over a connection that stands or can be made; through another peer if need be."""
        loop = asyncio.get_running_loop()
        dialling = loop.create_task(self._dial_directly(peer, protocol, deadline))
        taken = False
        try:
            await asyncio.wait([dialling], timeout=PATIENCE_S)
            stands = dialling.done() and not isinstance(dialling.result(), str)
            if not stands and await self._connect_through_others(peer, deadline):
                found = await self._dial_directly(peer, protocol, deadline)
            else:
                taken, found = True, await dialling
            if isinstance(found, str):
                raise NetworkError(f"peer {short(peer)} cannot be reached: {found}")
            return found
        finally:
            if not taken:
                await _drop(dialling)

    async def _dial_directly(
        self, peer: PeerId, protocol: str, deadline: float
    ) -> UnixStream | str:
        """A stream without the help of others, or why there is none."""
        control, name = self._daemon.control, PREFIX + protocol
        tried_addresses = False
        while True:
            try:
                return await control.open_stream(peer, name, deadline=deadline)
            except RefusalError as error:
                reason = str(error)
            if _NOT_SERVED in reason:
                raise NetworkError(
                    f"peer {short(peer)} does not serve {protocol!r}; is it of another version?"
                )
            if _NOT_TRIED in reason:
                await asyncio.sleep(_BACKOFF_STEP_S)
                continue
            if tried_addresses or not self._book.of(peer):
                return reason
            tried_addresses = True
            await self._connect(peer, deadline)

    async def _connect_through_others(self, peer: PeerId, deadline: float) -> bool:
        """Whether `peer` is connected now, by the help of somebody both of us are connected to."""
        if self._find_detours is None:
            return False
        try:
            addresses = await self._find_detours(peer, deadline)
            if addresses:
                await self._daemon.control.connect(peer, addresses, deadline=deadline)
        except (RefusalError, NetworkError) as error:
            _log.debug("peer %s through others: %s", short(peer), error)
            return False
        return bool(addresses)

    async def _connect(self, peer: PeerId, deadline: float) -> None:
        try:
            await self._daemon.control.connect(peer, self._book.of(peer), deadline=deadline)
        except RefusalError as error:
            _log.debug("peer %s at its known addresses: %s", short(peer), error)

    async def _unregister_all(self) -> None:
        deadline = asyncio.get_running_loop().time() + _UNREGISTER_S
        path = self._daemon.folder.stream_socket
        for name in self._incoming.take_all():
            try:
                await self._daemon.control.keep_streams(name, path, deadline=deadline)
            except (NetworkError, TimeoutError) as error:
                _log.debug("the daemon keeps the handler of %r: %s", name, error)

    async def _register_all(self) -> None:
        for name in self._incoming.names:
            await self._register(name)

    async def _register(self, name: str) -> None:
        deadline = asyncio.get_running_loop().time() + _REGISTER_S
        async with asyncio.timeout_at(deadline):
            await self._daemon.ready()
        await self._daemon.control.hand_over_streams(
            name, self._daemon.folder.stream_socket, deadline=deadline
        )

    def _keep(self, stream: UnixStream) -> None:
        self._open.add(stream)
        stream.on_gone(lambda: self._open.discard(stream))

    def _accept(self, stream: UnixStream) -> None:
        if self._server is None or len(self._tasks) >= MAX_STREAMS:
            self._incoming.refuse(stream, "all together")
            return
        self._keep(stream)
        task = asyncio.get_running_loop().create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: UnixStream) -> None:
        try:
            async with asyncio.timeout(HEAD_S):
                head = decode_stream_head(await stream.read_sized(max_bytes=_MAX_HEAD_BYTES))
        except (OSError, ValueError) as error:
            _log.debug("an incoming stream without a head: %s", error)
            stream.abort()
            return
        stream.belongs_to(head.peer)
        await self._incoming.serve(stream, head.protocol)


async def _drop(dialling: asyncio.Task[UnixStream | str]) -> None:
    """Ends an attempt that another one was faster than, and what it may have brought."""
    dialling.cancel()
    ended = (await asyncio.gather(dialling, return_exceptions=True))[0]
    if isinstance(ended, UnixStream):
        ended.abort()
