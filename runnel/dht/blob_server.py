"""Gives blobs to whoever asks: the protocol "blob".

A conversation is a series of requests and their answers, ended by an empty request::

    request  canonical [version = 1, [digest, ...]], at most 64 digests of 32 bytes
    answer   one message per digest, in order: status u8 | the blob, if the status is FOUND

BUSY answers all digests of the request that are not answered yet. Who ends a conversation sends
the empty request so that it is the one who read last, and closing costs no waiting.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from runnel.dht.blobs import MAX_BLOB_BYTES
from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from typing_extensions import Buffer

    from runnel.protocols import BlobSource, Stream, Transport
    from runnel.types import PeerId

PROTOCOL = "blob"
"""Name of the protocol, and the purpose under which its bytes are counted."""

MAX_DIGESTS = 64
MAX_REQUEST_BYTES = 8 + MAX_DIGESTS * (DIGEST_BYTES + 2)
MAX_ANSWER_BYTES = 1 + MAX_BLOB_BYTES

_VERSION = 1


class Status(IntEnum):
    """First byte of an answer."""

    FOUND = 0
    MISSING = 1
    BUSY = 2


def encode_request(digests: Sequence[Digest]) -> bytes:
    """A request for up to `MAX_DIGESTS` blobs; none ends the conversation."""
    if len(digests) > MAX_DIGESTS:
        raise ValueError(f"{len(digests)} digests in one request, at most {MAX_DIGESTS}")
    return pack([_VERSION, list(digests)])


def decode_request(data: Buffer) -> tuple[Digest, ...]:
    """The digests of a request.

    Raises:
        PeerError: "malformed".
    """
    match unpack(data, max_bytes=MAX_REQUEST_BYTES):
        case [int(version), list(digests)] if version == _VERSION and version is not True:
            if len(digests) > MAX_DIGESTS:
                raise PeerError("malformed", f"{len(digests)} digests, at most {MAX_DIGESTS}")
            if all(isinstance(d, bytes) and len(d) == DIGEST_BYTES for d in digests):
                return tuple(Digest(d) for d in digests)
    raise PeerError("malformed", "no list of digests of version 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeLimits:
    """What one server spends on others.

    Attributes:
        requests_per_peer: answered at the same time; more are told BUSY.
        requests: the same over all peers; each holds at most one blob in memory.
        streams_per_peer: open conversations; more are closed.
        idle_s: how long a conversation may stay silent.
        answer_s: how long a peer may take to receive one blob.
    """

    requests_per_peer: int = 4
    requests: int = 16
    streams_per_peer: int = 16
    idle_s: float = 60.0
    answer_s: float = 120.0

    def __post_init__(self) -> None:
        if min(self.requests_per_peer, self.requests, self.streams_per_peer) < 1:
            raise ValueError(f"limits below 1 serve nobody: {self}")
        if self.idle_s <= 0 or self.answer_s <= 0:
            raise ValueError(f"times must be positive: {self}")


class BlobServer:
    """Serves a `BlobSource` over a transport.

    Args:
        transport: where requests come from.
        source: read in `executor`, one blob at a time per request.
        executor: runs the reads, so that the loop never waits for a disk; None for the loop's own.
        limits: what others may use.
    """

    def __init__(
        self,
        transport: Transport,
        source: BlobSource,
        *,
        executor: Executor | None = None,
        limits: ServeLimits | None = None,
    ) -> None:
        self._transport = transport
        self._source = source
        self._executor = executor
        self._limits = limits or ServeLimits()
        self._active: Counter[PeerId] = Counter()
        self._streams: Counter[PeerId] = Counter()
        self._answers: Counter[str] = Counter()

    @property
    def answers(self) -> dict[str, int]:
        """How many answers were "found", "missing" and "busy", and how many streams "refused"."""
        return dict(self._answers)

    async def start(self) -> None:
        """From now on requests are answered, until the transport closes."""
        await self._transport.serve(PROTOCOL, self._converse)

    async def _converse(self, stream: Stream) -> None:
        peer = stream.remote
        if self._streams[peer] >= self._limits.streams_per_peer:
            self._answers["refused"] += 1
            raise PeerError("too-many-streams", f"{self._streams[peer]} are open")
        self._streams[peer] += 1
        try:
            while digests := await self._request(stream):
                await self._answer(stream, digests)
        finally:
            _release(self._streams, peer)

    async def _request(self, stream: Stream) -> tuple[Digest, ...]:
        deadline = asyncio.get_running_loop().time() + self._limits.idle_s
        data = await stream.receive(max_bytes=MAX_REQUEST_BYTES, deadline=deadline)
        try:
            return decode_request(data)
        except PeerError:
            self._answers["refused"] += 1
            raise

    async def _answer(self, stream: Stream, digests: tuple[Digest, ...]) -> None:
        peer = stream.remote
        if (
            self._active[peer] >= self._limits.requests_per_peer
            or self._active.total() >= self._limits.requests
        ):
            await self._send(stream, Status.BUSY)
            return
        self._active[peer] += 1
        try:
            for name in digests:
                await self._give(stream, name)
        finally:
            _release(self._active, peer)

    async def _give(self, stream: Stream, name: Digest) -> None:
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(self._executor, self._source.read, name)
        if content is None or len(content) > MAX_BLOB_BYTES:
            await self._send(stream, Status.MISSING)
        else:
            await self._send(stream, Status.FOUND, content)

    async def _send(self, stream: Stream, status: Status, content: bytes = b"") -> None:
        self._answers[status.name.lower()] += 1
        deadline = asyncio.get_running_loop().time() + self._limits.answer_s
        await stream.send(bytes((status,)), content, deadline=deadline)


def _release(counts: Counter[PeerId], peer: PeerId) -> None:
    counts[peer] -= 1
    if not counts[peer]:
        del counts[peer]
