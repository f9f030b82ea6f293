"""The bytes of a frame: a header and, for DATA, a payload.

::

    version u8 | kind u8 | length u32, big-endian | tag, 16 bytes | payload, `length` bytes

    DATA    tag = xxh3-128 of the payload, big-endian
    ACK     length 0, tag of the DATA that it answers
    REFUSE  length = a `Refusal`, tag of the DATA that it answers
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from runnel.errors import PeerError
from runnel.hashing import CHECKSUM_BYTES, checksum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


VERSION = 2
TAG_BYTES = CHECKSUM_BYTES
MAX_MESSAGE_BYTES = 2**32 - 1
"""The largest length that a header can name; receivers' own caps are far lower."""

PIECE_BYTES = 256 * 1024
"""The most that is read or written at once."""

_HEADER = struct.Struct(f">BBI{TAG_BYTES}s")
HEADER_BYTES = _HEADER.size
_SUMMED_BYTES = 8 * 1024 * 1024  # about a millisecond's work: then the loop gets a turn


class Kind(IntEnum):
    """What a frame is."""

    DATA = 1
    ACK = 2
    REFUSE = 3


class Refusal(IntEnum):
    """Why a receiver did not take a message."""

    TOO_LARGE = 1
    HASH_MISMATCH = 2


@dataclass(frozen=True, slots=True)
class Header:
    """What precedes a payload, or stands alone as an answer."""

    kind: Kind
    length: int
    tag: bytes

    @property
    def is_reply(self) -> bool:
        """Whether it answers a message."""
        return self.kind is not Kind.DATA

    def encode(self) -> bytes:
        """`HEADER_BYTES` bytes."""
        return _HEADER.pack(VERSION, self.kind, self.length, self.tag)

    @staticmethod
    def decode(data: bytes) -> Header:
        """The header in `HEADER_BYTES` bytes; raises ``PeerError("malformed")``."""
        version, kind, length, tag = _HEADER.unpack(data)
        if version != VERSION:
            raise PeerError("malformed", f"frame version {version}, expected {VERSION}")
        try:
            header = Header(Kind(kind), length, tag)
            if header.kind is Kind.REFUSE:
                Refusal(length)
        except ValueError:
            raise PeerError("malformed", f"frame kind {kind} with length {length}") from None
        if header.kind is Kind.ACK and length:
            raise PeerError("malformed", f"an acknowledgement of length {length}, expected 0")
        return header


async def tag_of(views: Sequence[memoryview]) -> bytes:
    """The tag of a payload in parts; gives the loop a turn every few milliseconds."""
    running = checksum()
    since_turn = 0
    for view in views:
        for start in range(0, view.nbytes, _SUMMED_BYTES):
            piece = view[start : start + _SUMMED_BYTES]
            if since_turn + piece.nbytes > _SUMMED_BYTES:
                await asyncio.sleep(0)
                since_turn = 0
            running.update(piece)
            since_turn += piece.nbytes
    return running.digest()


def batches(header: bytes, views: Sequence[memoryview]) -> Iterator[Sequence[bytes | memoryview]]:
    """The frame as lists of buffers to write at once, each of about `PIECE_BYTES` at most."""
    batch: list[bytes | memoryview] = [header]
    size = 0
    for view in views:
        for start in range(0, view.nbytes, PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            if size + piece.nbytes > PIECE_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += piece.nbytes
    yield batch
