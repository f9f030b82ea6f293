"""Byte streams between two ends in one process, with back-pressure and a harsh way of closing."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from runnel.types import PeerId


class Carrier(Protocol):
    """What a stream needs of its network."""

    @property
    def window_bytes(self) -> int:
        """How much of one direction of a stream may be written and not yet read."""
        ...

    def admit(self, pipe: Pipe, num_bytes: int) -> None:
        """Raises ConnectionError if a fault stops the next `num_bytes` bytes of `pipe`."""
        ...

    def carry(self, pipe: Pipe, num_bytes: int) -> None:
        """Calls ``pipe.arrive()`` once, when `num_bytes` more bytes have passed the two links."""
        ...

    def forget(self, peer: PeerId, stream: MemoryByteStream) -> None:
        """Takes note that `peer`'s end of a stream is closed."""
        ...


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of a stream. An entry is a piece of data, or None: the other end has closed.

    Each byte takes the links as long as `weight` bytes do.
    """

    source: PeerId
    target: PeerId
    weight: float = 1.0
    under_way: deque[bytes | None] = field(default_factory=deque)
    arrived: deque[bytes] = field(default_factory=deque)
    num_bytes: int = 0  # under way or arrived, not yet read
    ended: bool = False  # nothing more will be read
    first_s: float = 0.0
    last_s: float = 0.0
    num_stalled: int = 0
    on_close: Callable[[], None] = lambda: None
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def arrive(self) -> None:
        """Moves the oldest entry under way to the reader."""
        entry = self.under_way.popleft()
        if entry is None:
            self.ended = True
            self.on_close()
        elif self.ended or not entry:
            self.num_bytes -= len(entry)
        else:
            self.arrived.append(entry)
        self.wake()

    def drop(self) -> None:
        """Loses what is under way; the entries stay, because events will come for them."""
        self.num_bytes -= sum(len(entry) for entry in self.under_way if entry)
        self.under_way = deque(entry and b"" for entry in self.under_way)

    async def change(self) -> None:
        """Waits until something arrives, is read or ends."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        await future

    def wake(self) -> None:
        """Lets all who wait look again."""
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class MemoryByteStream:
    """One end of a stream in memory; implements `runnel.dht.framing.ByteStream`."""

    def __init__(self, network: Carrier, *, reads: Pipe, writes: Pipe) -> None:
        self._network = network
        self._reads = reads
        self._writes = writes
        self._closed = False
        self._writable = True
        reads.on_close = self._other_end_closed

    @property
    def remote(self) -> PeerId:
        """Who is at the other end."""
        return self._writes.target

    async def read(self, max_bytes: int) -> bytes:
        """See `ByteStream.read`."""
        pipe = self._reads
        while not pipe.arrived and not pipe.ended:
            await pipe.change()
        if not pipe.arrived:
            return b""
        data = pipe.arrived.popleft()
        if len(data) > max_bytes:
            pipe.arrived.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        pipe.num_bytes -= len(data)
        pipe.wake()
        return data

    async def read_into(self, room: memoryview) -> int:
        """See `ByteStream.read_into`."""
        data = await self.read(room.nbytes)
        room[: len(data)] = data
        return len(data)

    async def write(self, *parts: Buffer) -> None:
        """See `ByteStream.write`; waits while a window of bytes is not yet read."""
        pipe, data = self._writes, b"".join(parts)
        while self._writable and pipe.num_bytes >= self._network.window_bytes:
            await pipe.change()
        if not self._writable:
            raise BrokenPipeError("the stream is closed")
        if data:
            self._network.admit(pipe, len(data))
            pipe.under_way.append(data)
            pipe.num_bytes += len(data)
            self._network.carry(pipe, len(data))

    async def aclose(self) -> None:
        """See `ByteStream.aclose`; what is under way in either direction is lost."""
        self.abort()

    def abort(self) -> None:
        """See `ByteStream.abort`."""
        self.end(lose_under_way=True)

    def end(self, *, lose_under_way: bool) -> None:
        """Closes this end; what is under way to the other one arrives before the close, or never."""
        if self._closed:
            return
        self._closed, self._writable = True, False
        self._network.forget(self._writes.source, self)
        self._reads.ended = True
        self._reads.num_bytes -= sum(map(len, self._reads.arrived))
        self._reads.arrived.clear()
        if lose_under_way:
            self._writes.drop()
        self._writes.under_way.append(None)
        self._reads.wake()
        self._writes.wake()
        self._network.carry(self._writes, 0)

    def writes_to(self, pipe: Pipe) -> bool:
        """Whether this end is the one that writes into `pipe`."""
        return pipe is self._writes

    def _other_end_closed(self) -> None:
        self._writable = False
        self._writes.wake()
