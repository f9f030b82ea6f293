"""Byte streams over Unix sockets: how a daemon hands us the streams of peers."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

from runnel.dht.multiaddr import read_varint

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from runnel.types import PeerId

HIGH_WATER_BYTES = 1024 * 1024
"""Reading pauses while this much has arrived and not been taken."""

_SCRATCH_BYTES = 64 * 1024
_LOW_WATER_BYTES = HIGH_WATER_BYTES // 4


class UnixStream(asyncio.BufferedProtocol):
    """One connection to the daemon; once a peer is at its other end, a `runnel.dht.framing.ByteStream`.

    Unlike asyncio's own streams it keeps what has arrived when a later write fails, lets the kernel put
    what `read_into` waits for where it stays, and writes without keeping references to the caller's
    buffers.
    """

    def __init__(self, on_connect: Callable[[UnixStream], None] | None = None) -> None:
        self._on_connect = on_connect
        self._remote: PeerId | None = None
        self._transport: asyncio.Transport | None = None
        self._pieces: deque[bytes | memoryview] = deque()
        self._num_bytes = 0
        self._scratch: bytearray | None = None  # where bytes arrive that nobody waits for yet
        self._room: memoryview | None = None  # where they should arrive instead, what is left of it
        self._reading_paused = False
        self._ended = False  # nothing more will arrive
        self._arrival: asyncio.Future[None] | None = None
        self._congestion: asyncio.Future[None] | None = None  # set while the kernel takes no more
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, path: str) -> UnixStream:
        """A connection to the socket at `path`.

        Raises:
            OSError: nobody listens there.
        """
        _, stream = await asyncio.get_running_loop().create_unix_connection(cls, path)
        return stream

    @property
    def remote(self) -> PeerId:
        """The peer at the other end of the daemon."""
        assert self._remote is not None, "no peer yet"
        return self._remote

    def belongs_to(self, peer: PeerId) -> None:
        """From now on the bytes are `peer`'s."""
        self._remote = peer

    async def read(self, max_bytes: int) -> bytes:
        """Between 1 and `max_bytes` bytes as soon as there are some; b"" once either end has closed."""
        while not self._pieces and not self._ended:
            await self._next_arrival()
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if len(piece) > max_bytes:
            view = memoryview(piece)
            self._pieces.appendleft(view[max_bytes:])
            piece = view[:max_bytes]
        self._num_bytes -= len(piece)
        if self._reading_paused and self._num_bytes <= _LOW_WATER_BYTES and self._transport:
            self._reading_paused = False
            self._transport.resume_reading()
        return bytes(piece)  # no copy if it is bytes already

    async def read_into(self, room: memoryview) -> int:
        """See `runnel.dht.framing.ByteStream.read_into`."""
        if self._pieces or self._ended:
            piece = await self.read(room.nbytes)
            room[: len(piece)] = piece
            return len(piece)
        left = self._room = room
        try:
            while left.nbytes == room.nbytes and not self._ended:
                await self._next_arrival()
                left = self._room
            return room.nbytes - left.nbytes
        finally:
            self._room = None

    async def _next_arrival(self) -> None:
        self._arrival = asyncio.get_running_loop().create_future()
        await self._arrival

    async def read_sized(self, *, max_bytes: int) -> bytes:
        """A message with its length in front, as the daemon sends them.

        Raises:
            ConnectionError: the daemon closed the connection.
            ValueError: longer than `max_bytes`.
        """
        head = b""
        while not head or head[-1] >= 0x80:
            head += await self._read_exactly(1)
        size, _ = read_varint(head, 0)
        if size > max_bytes:
            raise ValueError(f"a message of {size} bytes from the daemon, at most {max_bytes}")
        return await self._read_exactly(size)

    async def write(self, *parts: Buffer) -> None:
        """Sends the parts and waits until the kernel has them all.

        Raises:
            ConnectionError: the stream is closed or broke.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the stream is closed")
        self._transport.writelines([memoryview(part) for part in parts])
        while self._congestion is not None:
            # Shielded: several writers may wait for its end.
            await asyncio.shield(self._congestion)
        if self._gone.done():
            raise ConnectionResetError("the stream broke")

    async def aclose(self) -> None:
        """Closes both directions; a pending `read` returns b"". Idempotent, never raises."""
        self.abort()  # what a finished `write` sent is in the kernel's hands and arrives
        if self._transport is not None:
            await asyncio.shield(self._gone)

    def abort(self) -> None:
        """Closes both directions at once, without waiting. Idempotent, never raises."""
        if self._transport is not None:
            self._transport.abort()

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once the connection is gone."""
        self._gone.add_done_callback(lambda _: callback())

    async def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await self.read(size - len(data))
            if not piece:
                raise ConnectionResetError("the daemon closed the connection")
            data += piece
        return data

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not inherit from it
        self._transport.set_write_buffer_limits(high=0)  # a write is over when nothing is left
        if self._on_connect is not None:
            self._on_connect(self)

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:  # noqa: ARG002 - asyncio's signature
        """See `asyncio.BufferedProtocol`."""
        if self._room:
            return self._room
        if self._scratch is None:
            self._scratch = bytearray(_SCRATCH_BYTES)
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        if self._room:
            self._room = self._room[nbytes:]
        else:
            self._hold(bytes(memoryview(self._scratch or b"")[:nbytes]))
        self._wake()

    def _hold(self, data: bytes) -> None:
        self._pieces.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > HIGH_WATER_BYTES and not self._reading_paused and self._transport:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`: our direction stays open until we close it."""
        self._ended = True
        self._wake()
        return True

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._congestion = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        congestion, self._congestion = self._congestion, None
        if congestion is not None and not congestion.done():
            congestion.set_result(None)

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.Protocol`. What has arrived can still be read."""
        self._ended = True
        if not self._gone.done():
            self._gone.set_result(None)
        self.resume_writing()
        self._wake()

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)
