"""Streams to and from peers through libp2p for Python; identities are proved by Noise."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from runnel.dht.address_book import AddressBook
from runnel.dht.connections import RefusalError
from runnel.dht.framing import FramedStream, TakeRoom, fresh_room
from runnel.dht.incoming import MAX_STREAMS, PREFIX, Incoming
from runnel.dht.throttle import Throttle
from runnel.dht.traffic import ByteCounter
from runnel.errors import NetworkError
from runnel.types import PeerId, short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runnel.dht.libp2p.host import Libp2pHost
    from runnel.dht.libp2p.stream import Libp2pStream
    from runnel.protocols import StreamHandler

_log = logging.getLogger(__name__)


class Libp2pTransport:
    """Streams through libp2p for Python; implements `runnel.protocols.Transport`."""

    def __init__(
        self,
        host: Libp2pHost,
        local_id: PeerId,
        take_room: TakeRoom = fresh_room,
        throttle: Throttle | None = None,
    ) -> None:
        """Does not own `host`: close it after this.

        `take_room` gives the memory for messages, `throttle` caps what is sent.
        """
        self._host = host
        self._local_id = local_id
        self._traffic = ByteCounter()
        self._incoming = Incoming(self._traffic, take_room, throttle or Throttle())
        self._book = AddressBook(local_id)
        self._open: set[Libp2pStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def local_id(self) -> PeerId:
        """This peer."""
        return self._local_id

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

    async def open(self, peer: PeerId, protocol: str, *, deadline: float) -> FramedStream:
        """A new stream to `peer`; see `runnel.protocols.Transport.open`."""
        if self._closed:
            raise NetworkError("this transport is closed")
        try:
            await self._host.connect(peer, self._book.of(peer), deadline=deadline)
        except RefusalError as error:
            raise NetworkError(f"peer {short(peer)} cannot be reached: {error}") from error
        try:
            stream = await self._host.open_stream(peer, PREFIX + protocol, deadline=deadline)
        except RefusalError as error:
            raise NetworkError(
                f"peer {short(peer)} opens no stream of {protocol!r}: {error}"
            ) from error
        self._keep(stream)
        return self._incoming.framed(stream, protocol)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Runs `handler` for each incoming stream of `protocol`; the stream closes when it returns."""
        if self._closed:
            raise NetworkError("this transport is closed")
        self._incoming.handle(protocol, handler)
        self._host.take_streams(PREFIX + protocol, self._accept)

    async def aclose(self) -> None:
        """Stops serving, closes all streams, cancels all handlers. Idempotent."""
        self._closed = True
        for name in self._incoming.take_all():
            self._host.leave_streams(name)
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        for stream in tuple(self._open):
            stream.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, stream: Libp2pStream, name: str) -> None:
        if self._closed or len(self._tasks) >= MAX_STREAMS:
            self._incoming.refuse(stream, "all together")
            return
        self._keep(stream)
        task = asyncio.get_running_loop().create_task(self._incoming.serve(stream, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _keep(self, stream: Libp2pStream) -> None:
        self._open.add(stream)
        stream.on_gone(lambda: self._open.discard(stream))
