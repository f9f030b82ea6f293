"""Messages over byte streams: one message is one frame, capped, hashed and acknowledged.

Closing: some transports end both directions when one ends, and lose what is still under way when
the end that wrote last closes first. So whoever read last closes at once, and the other end
lingers until it sees that. `FramedStream.aclose` does the right one of the two.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from runnel.dht.frames import (
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    PIECE_BYTES,
    Header,
    Kind,
    Refusal,
    batches,
    tag_of,
)
from runnel.dht.throttle import URGENT_BYTES, Throttle
from runnel.dht.traffic import StreamCounter
from runnel.errors import PeerError
from runnel.hashing import checksum
from runnel.types import short

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from runnel.dht.traffic import ByteCounter
    from runnel.types import PeerId

_log = logging.getLogger(__name__)

TakeRoom = Callable[[int], memoryview]
"""Gives writable memory of so many bytes, whatever they are."""

LINGER_S = 5.0
"""How long an end that wrote last waits for the other to close."""

_SMALL_BYTES = 1 << 16


def fresh_room(size_bytes: int) -> memoryview:
    """New memory. Of a larger piece the system hands over only what is written to."""
    small = size_bytes < _SMALL_BYTES
    return memoryview(bytearray(size_bytes) if small else mmap.mmap(-1, size_bytes))


class ByteStream(Protocol):
    """An ordered stream of bytes to one authenticated peer: what a transport gives to `FramedStream`."""

    @property
    def remote(self) -> PeerId:
        """Who is at the other end; proved by the transport."""
        ...

    async def read(self, max_bytes: int) -> bytes:
        """Between 1 and `max_bytes` bytes as soon as there are some; b"" once either end has closed.

        Raises:
            OSError: the stream broke.
        """
        ...

    async def read_into(self, room: memoryview) -> int:
        """As `read`, but puts the bytes at the beginning of `room` and gives their number; 0 at the end.

        After a cancellation what had arrived in `room` is lost to the stream.

        Raises:
            OSError: the stream broke.
        """
        ...

    async def write(self, *parts: Buffer) -> None:
        """Sends the parts in order and waits while the stream is congested (back-pressure).

        The parts belong to the caller again when this returns: what is still to be sent was copied.

        Raises:
            OSError: the stream is closed or broke.
        """
        ...

    async def aclose(self) -> None:
        """Closes both directions; a pending `read` returns b"". Idempotent, never raises."""
        ...

    def abort(self) -> None:
        """Closes both directions at once, without waiting. Idempotent, never raises."""
        ...


class FramedStream:
    """Messages to and from one peer over a `ByteStream`; implements `runnel.protocols.Stream`.

    Concurrent sends take turns. A conversation may send and receive at the same time when each end
    does the two in tasks of their own; it should end with messages in one direction only. After any
    failure, a timeout or a cancellation in the middle of a message the stream is of no use: every
    further call raises ``PeerError("closed")``.

    Costs one pass of summing per message at each end; parts are never joined, and what arrives is put
    where it stays.
    """

    def __init__(
        self,
        byte_stream: ByteStream,
        traffic: ByteCounter,
        purpose: str,
        *,
        take_room: TakeRoom = fresh_room,
        throttle: Throttle | None = None,
    ) -> None:
        """`take_room` gives the memory that messages arrive in, `throttle` caps what all streams send."""
        self._bytes = byte_stream
        self._throttle = throttle or Throttle()
        self._counted = StreamCounter(traffic, purpose)
        self._take_room = take_room
        self._sending = asyncio.Lock()  # one message, from its header to its reply
        self._writing = asyncio.Lock()  # one frame: replies never land inside a payload
        self._wire = asyncio.Condition()  # whoever reads a frame
        self._held: Header | None = None  # read by the half that it is not for
        self._failure: str | None = None
        self._closing = False
        self._wrote_last = False
        self._refused = False

    @property
    def remote(self) -> PeerId:
        """Who is at the other end; proved by the transport."""
        return self._bytes.remote

    @property
    def received_bytes(self) -> int:
        """Bytes that came in so far, those of a message under way included."""
        return self._counted.received_bytes

    async def send(self, *parts: Buffer, deadline: float) -> None:
        """Sends one message (the concatenation of `parts`); returns once the other end has checked it.

        Args:
            parts: contiguous buffers; they must not change until this returns.
            deadline: loop time, seconds.

        Raises:
            PeerError: "refused" by the other end, "closed", or "malformed" (its answer makes no sense).
            TimeoutError: no acknowledgement by `deadline`.
            ValueError: more than `MAX_MESSAGE_BYTES` in all.
        """
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        length = sum(view.nbytes for view in views)
        if length > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {length} bytes; a frame holds {MAX_MESSAGE_BYTES}")
        async with asyncio.timeout_at(deadline), self._sending:
            with _Failing(self):
                self._wrote_last = False
                header = Header(Kind.DATA, length, await tag_of(views))
                frame = batches(header.encode(), views)
                if length <= PIECE_BYTES:
                    await self._write_frame(frame, urgent=length <= URGENT_BYTES)
                    reply = await self._take_reply()
                else:
                    reply = await self._write_until_reply(frame)
                self._check_reply(header, reply)

    async def receive(self, *, max_bytes: int, deadline: float) -> memoryview:
        """The next message, its hash checked; acknowledges it.

        Fresh memory grows with what arrives (page by page), not with what a header announces.

        Args:
            max_bytes: a longer message is refused from its header alone.
            deadline: loop time, seconds.

        Raises:
            PeerError: "too-large", "hash-mismatch", "malformed" or "closed".
            TimeoutError: nothing complete by `deadline`.
        """
        async with asyncio.timeout_at(deadline):
            with _Failing(self):
                header = await self._take_header(reply=False)
                try:
                    if header.length > max_bytes:
                        await self._refuse(header, Refusal.TOO_LARGE)
                        raise PeerError(
                            "too-large", f"a message of {header.length} bytes, at most {max_bytes}"
                        )
                    payload, tag = await self._read_payload(header.length)
                finally:
                    self._leave_wire()
                if tag != header.tag:
                    await self._refuse(header, Refusal.HASH_MISMATCH)
                    raise PeerError("hash-mismatch", f"in a message of {header.length} bytes")
                await self._answer(Header(Kind.ACK, 0, header.tag))
                return payload

    async def aclose(self) -> None:
        """Ends the conversation; lingers up to `LINGER_S` if our bytes were the last ones.

        Idempotent; calls in progress raise ``PeerError("closed")``.
        """
        if self._closing:
            return
        self._closing = True
        intact = self._failure is None or self._refused
        self._failure = self._failure or "closed here"
        try:
            if self._wrote_last and intact and not self._wire.locked():
                await self._linger()
        except asyncio.CancelledError:
            self._bytes.abort()
            raise
        await self._bytes.aclose()

    @property
    def refused(self) -> bool:
        """Whether a message was refused here, so that closing must wait until that has arrived."""
        return self._refused

    def abort(self) -> None:
        """Drops the connection at once: for failures, where lingering would hide them."""
        self._closing = True
        self._failure = self._failure or "closed here"
        self._bytes.abort()

    def check(self) -> None:
        """Raises ``PeerError("closed")`` if this stream is of no use any more."""
        if self._failure is not None:
            raise PeerError("closed", self._failure)

    def fail(self, error: BaseException) -> None:
        """Makes this stream useless: something went wrong in the middle of a message."""
        self._failure = self._failure or (str(error) or type(error).__name__)
        if not self._refused:  # the refusal must still arrive; `aclose` lingers for it
            self._bytes.abort()

    async def _write_until_reply(self, frame: Iterator[Sequence[bytes | memoryview]]) -> Header:
        """Writes a long frame while listening: a refusal of its header ends the writing early."""
        outcome: Header | PeerError
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write_frame(frame))
            try:
                outcome = await self._take_reply()
            except PeerError as error:
                outcome = error
            if isinstance(outcome, PeerError) or outcome.kind is Kind.REFUSE:
                writing.cancel()
        if isinstance(outcome, PeerError):
            raise outcome
        return outcome

    async def _write_frame(
        self, frame: Iterator[Sequence[bytes | memoryview]], *, urgent: bool = False
    ) -> None:
        """Writes DATA; a stream that breaks meanwhile shows when the reply is read, with the reason."""
        try:
            async with self._writing:
                for batch in frame:
                    await self._write(batch, urgent=urgent)
        except OSError as error:
            _log.debug("writing to %s failed: %s", short(self.remote), error)

    async def _write(self, parts: Sequence[bytes | memoryview], *, urgent: bool) -> None:
        for piece in self._throttle.pieces(parts):
            size = sum(map(len, piece))
            await self._throttle.admit(size, urgent=urgent)
            await self._bytes.write(*piece)
            self._counted.add_sent(size)

    async def _answer(self, header: Header) -> None:
        async with self._writing:
            await self._write([header.encode()], urgent=True)
        self._wrote_last = True

    async def _refuse(self, header: Header, reason: Refusal) -> None:
        await self._answer(Header(Kind.REFUSE, reason, header.tag))
        self._refused = True

    async def _take_reply(self) -> Header:
        try:
            header = await self._take_header(reply=True)
        except OSError as error:
            raise PeerError("closed", str(error)) from error
        self._leave_wire()
        return header

    def _check_reply(self, sent: Header, reply: Header) -> None:
        if reply.tag != sent.tag:
            raise PeerError("malformed", "an answer to a message that was not sent")
        if reply.kind is Kind.REFUSE:
            reason = Refusal(reply.length).name.lower().replace("_", " ")
            raise PeerError("refused", f"a message of {sent.length} bytes: {reason}")

    async def _take_header(self, *, reply: bool) -> Header:
        """The next header for one half of the conversation, which has the wire until `_leave_wire`.

        Whichever half waits first reads for both; a header for the other half is held until that
        half takes it, because its payload, if it has one, comes next on the wire.
        """
        await self._wire.acquire()
        try:
            while True:
                while self._held is not None and self._held.is_reply is not reply:
                    await self._wire.wait()
                header = self._held or await self._read_header()
                if header.is_reply is reply:
                    self._held = None
                    return header
                self._held = header
        except BaseException:
            self._leave_wire()
            raise

    def _leave_wire(self) -> None:
        self._wire.notify_all()
        self._wire.release()

    async def _read_header(self) -> Header:
        data = b""
        while len(data) < HEADER_BYTES:
            data += await self._read(HEADER_BYTES - len(data))
        self._wrote_last = False
        header = Header.decode(data)
        if header.is_reply and not self._sending.locked():
            raise PeerError("malformed", "an answer although nothing was sent")
        return header

    async def _read_payload(self, length: int) -> tuple[memoryview, bytes]:
        payload, running, filled = self._take_room(length), checksum(), 0
        while filled < length:
            rest = payload[filled:]
            arrived = self._count(await self._bytes.read_into(rest))
            running.update(rest[:arrived])
            filled += arrived
        return payload, running.digest()

    async def _read(self, max_bytes: int) -> bytes:
        data = await self._bytes.read(max_bytes)
        self._count(len(data))
        return data

    def _count(self, num_bytes: int) -> int:
        if not num_bytes:
            raise PeerError("closed", self._failure or "by the other end")
        self._counted.add_received(num_bytes)
        return num_bytes

    async def _linger(self) -> None:
        """Waits for the other end to close. After a refusal, what it still sends is thrown away."""
        try:
            async with asyncio.timeout(LINGER_S):
                while data := await self._bytes.read(PIECE_BYTES):
                    self._counted.add_received(len(data))
                    if not self._refused:
                        return  # a new message: so our acknowledgement has arrived
        except OSError as error:  # TimeoutError is one
            _log.debug("lingering for %s: %s", short(self.remote), str(error) or "no close in time")


class _Failing:
    """A border behind which every way out but the good one makes a stream useless."""

    __slots__ = ("_stream",)

    def __init__(self, stream: FramedStream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._stream.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is None:
            return
        self._stream.fail(error)
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            raise PeerError("closed", str(error)) from error
