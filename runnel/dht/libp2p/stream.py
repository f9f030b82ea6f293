"""Byte streams of libp2p for Python, awaited by asyncio."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from libp2p.network.stream.exceptions import StreamError

from runnel.types import PeerId, short

if TYPE_CHECKING:
    from collections.abc import Callable

    from libp2p.network.stream.net_stream import NetStream
    from typing_extensions import Buffer

    from runnel.dht.libp2p.guest import TrioGuest

_log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
"""What is asked for at a time beyond what a small read needs."""

MAX_FRAME_BYTES = 65_000
"""One frame of yamux in one message of Noise."""

DRAIN_S = 5.0
"""How long the other end may take to close after us, before the stream is reset."""

_FIRST_WAIT_S = 0.0005
_LONGEST_WAIT_S = 0.02


class Libp2pStream:
    """One stream; implements `runnel.dht.framing.ByteStream`.

    Nothing is read ahead but the rest of a piece, so that a reader that is slow holds up its sender by
    yamux's window.
    """

    def __init__(self, guest: TrioGuest, stream: NetStream) -> None:
        self._guest = guest
        self._stream = stream
        self._muxed = stream.muxed_stream
        self._remote = PeerId(stream.muxed_conn.peer_id.to_bytes())
        self._rest = memoryview(b"")
        self._reading: trio.CancelScope | None = None
        self._closed = False
        self._gone = trio.Event()
        self._callbacks: list[Callable[[], object]] = []

    @property
    def remote(self) -> PeerId:
        """Who is at the other end; proved by Noise."""
        return self._remote

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Calls `callback` once this end is closed."""
        self._callbacks.append(callback)

    async def read(self, max_bytes: int) -> bytes:
        """See `runnel.dht.framing.ByteStream.read`."""
        if not self._rest:
            self._rest = memoryview(await self._fetch(max(max_bytes, READ_BYTES)))
        piece, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return bytes(piece)

    async def read_into(self, room: memoryview) -> int:
        """See `runnel.dht.framing.ByteStream.read_into`."""
        piece = self._rest or memoryview(await self._fetch(room.nbytes))
        size = min(piece.nbytes, room.nbytes)
        room[:size] = piece[:size]
        self._rest = piece[size:]
        return size

    async def write(self, *parts: Buffer) -> None:
        """See `runnel.dht.framing.ByteStream.write`."""
        if self._closed:
            raise ConnectionResetError("the stream is closed")
        await self._guest.call(self._write, b"".join(parts))

    async def aclose(self) -> None:
        """See `runnel.dht.framing.ByteStream.aclose`."""
        if self._end():
            self._guest.spawn(self._close)

    def abort(self) -> None:
        """See `runnel.dht.framing.ByteStream.abort`."""
        if self._end():
            self._guest.spawn(self._reset)

    async def wait_gone(self) -> None:
        """Returns once this end is closed; on trio."""
        await self._gone.wait()

    def _end(self) -> bool:
        """Whether this is the call that ends the stream."""
        if self._closed:
            return False
        self._closed = True
        while self._callbacks:
            self._callbacks.pop()()
        return True

    async def _fetch(self, max_bytes: int) -> bytes:
        if self._closed:
            return b""
        return await self._guest.call(self._read, max_bytes)

    # What runs on trio.

    async def _read(self, max_bytes: int) -> bytes:
        data = b""
        with trio.CancelScope() as self._reading:
            if not self._closed:
                try:
                    data = await self._stream.read(max_bytes)
                except StreamError as error:  # its end, or that it was reset
                    _log.debug("stream of %s: %s", short(self._remote), error or "ended")
        return data  # nothing if it was closed here meanwhile

    async def _write(self, data: bytes) -> None:
        """Writes all of `data`, whatever time the other end takes to read.

        libp2p itself breaks a stream off whose window stays closed for five seconds, so it is only
        called with what fits into the window.
        """
        view, wait_s = memoryview(data), _FIRST_WAIT_S
        while view:
            size = min(len(view), self._muxed.send_window, MAX_FRAME_BYTES)
            if self._closed or self._muxed.closed:
                raise ConnectionResetError("the stream broke")
            if size <= 0:
                if self._muxed.recv_closed:
                    raise ConnectionResetError("the other end closed")
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            try:
                await self._stream.write(bytes(view[:size]))
            except StreamError as error:
                raise ConnectionResetError(f"the stream broke: {error}") from error
            view, wait_s = view[size:], _FIRST_WAIT_S

    async def _close(self) -> None:
        """Closes our direction and waits a little for theirs."""
        self._let_go()
        await self._stream.close()
        with trio.move_on_after(DRAIN_S):
            try:
                while await self._stream.read(READ_BYTES):
                    pass
            except StreamError:
                return
        await self._stream.reset()

    async def _reset(self) -> None:
        self._let_go()
        await self._stream.reset()

    def _let_go(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._gone.set()
