"""Bulk data between members: payload slices to reducers, results to everybody. Bytes only, no meaning.

Every transfer is one stream. A payload travels with the Merkle path that proves it belongs to the
commitment its sender signed; a result is named by its digest.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError, RunnelError
from runnel.hashing import digest
from runnel.node.actions import RoundKey
from runnel.node.records import digest_of, integer, items, row
from runnel.protocols import Stream, Transport
from runnel.types import Digest, PeerId

SLICE_PROTOCOL = "slice"
RESULT_PROTOCOL = "result"
_HEADER = struct.Struct(">I")
_MAX_HEADER_BYTES = 4096
_REQUEST_S = 10.0
_MAX_SLICE_BYTES = 1 << 30
_SOON = 0.9
_AT_ONCE = 2
"""Holders that are asked for one result beside each other, at most."""


@dataclass(frozen=True, slots=True)
class PayloadSlice:
    """One slice of a committed payload."""

    key: RoundKey
    index: int
    commitment: Digest
    path: tuple[Digest, ...]
    payload: bytes | memoryview

    def header(self) -> bytes:
        """What precedes the payload: all but that, canonical, after its length."""
        key = self.key
        fields = pack([key.number, key.base, self.index, self.commitment, list(self.path)])
        return _HEADER.pack(len(fields)) + fields


SliceTaker = Callable[[PeerId, PayloadSlice], Awaitable[None]]
SizeLimit = Callable[[PeerId], int]
ResultLookup = Callable[[Digest], Awaitable[bytes | memoryview | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A result to fetch.

    Attributes:
        root: its digest.
        holders: who may have it, the likeliest first.
        size_bytes: its size, as its reducer says; 0 if that is not known.
        max_bytes: its size at most.
        usual_s: how long a transfer takes.
        patience_s: how long each holder is given.
    """

    root: Digest
    holders: Sequence[PeerId]
    size_bytes: int
    max_bytes: int
    usual_s: float
    patience_s: float


@dataclass(slots=True)
class _Asked:
    """A holder that was asked for a result, and its stream once it has said that it was."""

    peer: PeerId
    since: float
    stream: Stream | None = None
    told_bytes: int = 0

    def is_on_course(self, wanted: Wanted, now: float) -> bool:
        """Whether it may still be done in time, as it looks; it takes a while to begin."""
        if now - self.since < _SOON * wanted.usual_s:  # timers are not exact
            return True
        over_s, left_s = now - self.since - wanted.usual_s, wanted.patience_s - wanted.usual_s
        received = self.stream.received_bytes - self.told_bytes if self.stream else 0
        return received > 0 and received * left_s >= wanted.size_bytes * over_s


class GoneError(RunnelError):
    """Every peer that could be asked for a result answered that it does not have it."""


class Bulk:
    """Sends and serves slices and results over one transport."""

    def __init__(
        self, transport: Transport, *, take: SliceTaker, limit: SizeLimit, lookup: ResultLookup
    ) -> None:
        """`take` gets checked-in slices (PeerError refuses one), `limit` caps them, `lookup` finds results."""
        self._transport = transport
        self._take, self._limit, self._lookup = take, limit, lookup
        self._incoming: dict[Stream, int] = {}

    async def serve(self) -> None:
        """Starts serving both protocols."""
        await self._transport.serve(SLICE_PROTOCOL, self._on_slice)
        await self._transport.serve(RESULT_PROTOCOL, self._on_result)

    def senders(self) -> set[PeerId]:
        """From whom bytes of slices came since the last call."""
        active = set()
        for stream, seen in self._incoming.items():
            received = stream.received_bytes
            if received > seen:
                self._incoming[stream] = received
                active.add(stream.remote)
        return active

    async def scatter(self, to: PeerId, piece: PayloadSlice, *, deadline: float) -> None:
        """Sends a slice; returns once the reducer has taken it.

        Raises:
            PeerError, NetworkError, TimeoutError: it has not.
        """
        header = piece.header()
        stream = await self._transport.open(to, SLICE_PROTOCOL, deadline=deadline)
        try:
            await stream.send(header, piece.payload, deadline=deadline)
            answer = await stream.receive(max_bytes=1, deadline=deadline)
        finally:
            await stream.aclose()
        if bytes(answer) != b"\x01":
            raise PeerError("refused", "the reducer did not take a slice")

    async def fetch(self, wanted: Wanted) -> memoryview:
        """A result's bytes from the first of its holders that gives them.

        The next one is asked when one fails, and also, beside it, when it gives nothing or too slowly:
        who names a result and then keeps it, or is gone, costs no more than a usual transfer. A link
        that is merely slow is not burdened with the same bytes twice.

        Raises:
            GoneError: nobody has it.
            NetworkError: nobody gave it.
        """
        loop, waiting = asyncio.get_running_loop(), deque(wanted.holders)
        running: dict[asyncio.Task[memoryview | None], _Asked] = {}
        reasons, refusals = list[str](), 0
        try:
            while waiting or running:
                now = loop.time()
                steady = any(asked.is_on_course(wanted, now) for asked in running.values())
                if waiting and len(running) < _AT_ONCE and not steady:
                    asked = _Asked(waiting.popleft(), now)
                    task = loop.create_task(self._fetch_from(asked, wanted), name="bulk:fetch")
                    running[task] = asked
                done, _ = await asyncio.wait(
                    running, timeout=wanted.usual_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    del running[task]
                    try:
                        data = task.result()
                    except (PeerError, NetworkError, TimeoutError) as error:
                        reasons.append(str(error) or "no answer in time")
                        continue
                    if data is not None:
                        return data
                    refusals += 1
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        kind = GoneError if refusals and not reasons else NetworkError
        raise kind(
            f"no holder gave result {wanted.root[:4].hex()} ({'; '.join(reasons) or 'none has it'})"
        )

    async def _fetch_from(self, asked: _Asked, wanted: Wanted) -> memoryview | None:
        deadline = asked.since + wanted.patience_s
        stream = await self._transport.open(asked.peer, RESULT_PROTOCOL, deadline=deadline)
        try:
            await stream.send(wanted.root, deadline=deadline)
            asked.stream, asked.told_bytes = stream, stream.received_bytes
            data = await stream.receive(max_bytes=wanted.max_bytes + 1, deadline=deadline)
        finally:
            await stream.aclose()
        if not data or data[0] != 1:
            return None
        result = data[1:].toreadonly()
        if digest(result) != wanted.root:
            raise PeerError("result", "bytes that are not what their name says")
        return result

    async def _on_slice(self, stream: Stream) -> None:
        deadline = asyncio.get_running_loop().time() + _REQUEST_S * 6
        cap = min(self._limit(stream.remote), _MAX_SLICE_BYTES) + _MAX_HEADER_BYTES + _HEADER.size
        self._incoming[stream] = 0
        try:
            data = await stream.receive(max_bytes=cap, deadline=deadline)
        finally:
            del self._incoming[stream]
        try:
            await self._take(stream.remote, read_slice(data))
            answer = b"\x01"
        except PeerError:
            answer = b"\x00"
        await stream.send(answer, deadline=deadline)

    async def _on_result(self, stream: Stream) -> None:
        deadline = asyncio.get_running_loop().time() + _REQUEST_S * 6
        request = await stream.receive(max_bytes=32, deadline=deadline)
        data = await self._lookup(digest_of(bytes(request)))
        if data is None:
            await stream.send(b"\x00", deadline=deadline)
        else:
            await stream.send(b"\x01", data, deadline=deadline)


def read_slice(data: memoryview) -> PayloadSlice:
    """The slice that a message holds; its payload is a view of `data`. PeerError for anything malformed."""
    if len(data) < _HEADER.size:
        raise PeerError("malformed", "a slice without a header")
    (size,) = _HEADER.unpack_from(data)
    if size > min(_MAX_HEADER_BYTES, len(data) - _HEADER.size):
        raise PeerError("malformed", "a slice whose header is longer than allowed")
    view = data.toreadonly()
    end = _HEADER.size + size
    fields = unpack(bytes(view[_HEADER.size : end]), max_bytes=_MAX_HEADER_BYTES)
    number, base, index, commitment, path = row(fields, 5)
    return PayloadSlice(
        RoundKey(integer(number), digest_of(base)),
        integer(index),
        digest_of(commitment),
        tuple(digest_of(step) for step in items(path)),
        view[end:],
    )
