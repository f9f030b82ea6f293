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
        """All but the payload, canonical."""
        key = self.key
        return pack([key.number, key.base, self.index, self.commitment, list(self.path)])


SliceTaker = Callable[[PeerId, PayloadSlice], Awaitable[None]]
SizeLimit = Callable[[PeerId], int]
ResultLookup = Callable[[Digest], Awaitable[bytes | memoryview | None]]


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

    async def serve(self) -> None:
        """Starts serving both protocols."""
        await self._transport.serve(SLICE_PROTOCOL, self._on_slice)
        await self._transport.serve(RESULT_PROTOCOL, self._on_result)

    async def scatter(self, to: PeerId, piece: PayloadSlice, *, deadline: float) -> None:
        """Sends a slice; returns once the reducer has taken it.

        Raises:
            PeerError, NetworkError, TimeoutError: it has not.
        """
        header = piece.header()
        stream = await self._transport.open(to, SLICE_PROTOCOL, deadline=deadline)
        try:
            await stream.send(_HEADER.pack(len(header)), header, piece.payload, deadline=deadline)
            answer = await stream.receive(max_bytes=1, deadline=deadline)
        finally:
            await stream.aclose()
        if bytes(answer) != b"\x01":
            raise PeerError("refused", "the reducer did not take a slice")

    async def fetch(
        self,
        root: Digest,
        holders: Sequence[PeerId],
        *,
        max_bytes: int,
        usual_s: float,
        patience_s: float,
    ) -> memoryview:
        """A result's bytes from the first of its holders that gives them.

        The next one is asked when one fails, and also, beside it, when it takes longer than usual: who
        names a result and then keeps it, or is gone, costs no more than that.

        Args:
            root: the result.
            holders: who may have it, the likeliest first.
            max_bytes: its size at most.
            usual_s: how long a transfer takes.
            patience_s: how long each holder is given.

        Raises:
            GoneError: nobody has it.
            NetworkError: nobody gave it.
        """
        loop, waiting = asyncio.get_running_loop(), deque(holders)
        running: set[asyncio.Task[memoryview | None]] = set()
        done: set[asyncio.Task[memoryview | None]] = set()
        reasons, refusals = list[str](), 0
        try:
            while waiting or running:
                if waiting and len(running) < _AT_ONCE:
                    asked = self._fetch_from(
                        waiting.popleft(),
                        root,
                        max_bytes=max_bytes,
                        deadline=loop.time() + patience_s,
                    )
                    running.add(loop.create_task(asked, name="bulk:fetch"))
                hedge_s = usual_s if waiting and len(running) < _AT_ONCE else None
                done, running = await asyncio.wait(
                    running, timeout=hedge_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
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
            await asyncio.gather(*running, *done, return_exceptions=True)
        kind = GoneError if refusals and not reasons else NetworkError
        raise kind(
            f"no holder gave result {root[:4].hex()} ({'; '.join(reasons) or 'none has it'})"
        )

    async def _fetch_from(
        self, peer: PeerId, root: Digest, *, max_bytes: int, deadline: float
    ) -> memoryview | None:
        stream = await self._transport.open(peer, RESULT_PROTOCOL, deadline=deadline)
        try:
            await stream.send(root, deadline=deadline)
            data = await stream.receive(max_bytes=max_bytes + 1, deadline=deadline)
        finally:
            await stream.aclose()
        if not data or data[0] != 1:
            return None
        result = data[1:].toreadonly()
        if digest(result) != root:
            raise PeerError("result", "bytes that are not what their name says")
        return result

    async def _on_slice(self, stream: Stream) -> None:
        deadline = asyncio.get_running_loop().time() + _REQUEST_S * 6
        cap = min(self._limit(stream.remote), _MAX_SLICE_BYTES) + _MAX_HEADER_BYTES + _HEADER.size
        data = await stream.receive(max_bytes=cap, deadline=deadline)
        try:
            await self._take(stream.remote, _read_slice(data))
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


def _read_slice(data: memoryview) -> PayloadSlice:
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
