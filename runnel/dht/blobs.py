"""Content by hash: trees of chunks, and the shelf that holds what this peer serves.

A *blob* is a byte string named by its blake3-256. A *tree* names content of any length: its root
blob lists the digests of the content's chunks, and the root blob's digest is the tree's name. So
whoever knows 32 bytes can take the chunks from anybody, in any order, and check each by itself.

The root blob::

    version u8 = 1 | size_bytes u64 | chunk_bytes u32, big-endian | 32 bytes per chunk

All chunks have `chunk_bytes` bytes but the last, which is shorter and never empty; empty content
has no chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from typing_extensions import Buffer


CHUNK_BYTES = 1024 * 1024
"""Chunk length unless a tree says otherwise."""

MIN_CHUNK_BYTES = 256
"""Below, the list of digests would weigh too much beside the content."""

MAX_BLOB_BYTES = 4 * 1024 * 1024
"""No chunk, root or other blob is longer. The root of 128 GiB in chunks of 1 MiB just fits."""

_VERSION = 1
_HEADER = struct.Struct(">BQI")


@dataclass(frozen=True, slots=True)
class Tree:
    """What a root blob says.

    Attributes:
        size_bytes: of the content.
        chunk_bytes: of every chunk but the last.
        digests: of the chunks, in order.
    """

    size_bytes: int
    chunk_bytes: int
    digests: tuple[Digest, ...]

    def span(self, index: int) -> tuple[int, int]:
        """Where chunk `index` starts and stops in the content."""
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.size_bytes)

    def encode(self) -> bytes:
        """The root blob.

        Raises:
            ValueError: so many chunks that it would exceed `MAX_BLOB_BYTES`.
        """
        size = _HEADER.size + DIGEST_BYTES * len(self.digests)
        if size > MAX_BLOB_BYTES:
            raise ValueError(
                f"{self.size_bytes} bytes in chunks of {self.chunk_bytes} need a root of {size}"
                f" bytes, at most {MAX_BLOB_BYTES}: choose longer chunks or split the content"
            )
        return _HEADER.pack(_VERSION, self.size_bytes, self.chunk_bytes) + b"".join(self.digests)

    @staticmethod
    def decode(root_blob: Buffer, *, max_total_bytes: int) -> Tree:
        """The tree of a root blob; nothing is allocated for what it only claims.

        Raises:
            PeerError: "too-large" (content longer than `max_total_bytes`) or "malformed".
        """
        data = bytes(root_blob)
        if len(data) < _HEADER.size:
            raise PeerError("malformed", f"a root of {len(data)} bytes")
        version, size_bytes, chunk_bytes = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise PeerError("malformed", f"root version {version}, expected {_VERSION}")
        if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_BLOB_BYTES:
            raise PeerError(
                "malformed",
                f"chunks of {chunk_bytes} bytes, expected {MIN_CHUNK_BYTES} to {MAX_BLOB_BYTES}",
            )
        if size_bytes > max_total_bytes:
            raise PeerError("too-large", f"{size_bytes} bytes, at most {max_total_bytes} expected")
        expected = _HEADER.size + DIGEST_BYTES * -(-size_bytes // chunk_bytes)
        if len(data) != expected:
            raise PeerError("malformed", f"a root of {len(data)} bytes, expected {expected}")
        starts = range(_HEADER.size, len(data), DIGEST_BYTES)
        digests = tuple(Digest(data[start : start + DIGEST_BYTES]) for start in starts)
        return Tree(size_bytes, chunk_bytes, digests)


def split(
    parts: Iterable[Buffer], *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Digest, bytes, list[memoryview]]:
    """Root, root blob and chunks of the concatenation of `parts`.

    A chunk inside one part is a view of it; only chunks that span parts are copied. Costs one pass
    of hashing.

    Raises:
        ValueError: `chunk_bytes` out of range, or too many chunks for one root.
    """
    chunks = [
        pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        for pieces in _chunk_pieces(parts, chunk_bytes)
    ]
    root_blob = _tree(((chunk,) for chunk in chunks), chunk_bytes).encode()
    return digest(root_blob), root_blob, chunks


def tree_root(parts: Iterable[Buffer], *, chunk_bytes: int = CHUNK_BYTES) -> Digest:
    """The root of the concatenation of `parts`, as by `split`; copies nothing."""
    return digest(_tree(_chunk_pieces(parts, chunk_bytes), chunk_bytes).encode())


def _tree(chunks: Iterable[Sequence[memoryview]], chunk_bytes: int) -> Tree:
    digests, size_bytes = [], 0
    for pieces in chunks:
        digests.append(digest(*pieces))
        size_bytes += sum(piece.nbytes for piece in pieces)
    return Tree(size_bytes, chunk_bytes, tuple(digests))


def _chunk_pieces(parts: Iterable[Buffer], chunk_bytes: int) -> Iterator[list[memoryview]]:
    """For each chunk the views that make it."""
    if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_BLOB_BYTES:
        raise ValueError(
            f"chunk_bytes {chunk_bytes}, expected {MIN_CHUNK_BYTES} to {MAX_BLOB_BYTES}"
        )
    pieces: list[memoryview] = []
    room = chunk_bytes
    for part in parts:
        whole = memoryview(part)
        view = whole.cast("B") if whole.nbytes else memoryview(b"")  # empty shapes have no cast
        start = 0
        while start < view.nbytes:
            pieces.append(view[start : start + room])
            start += pieces[-1].nbytes
            room -= pieces[-1].nbytes
            if not room:
                yield pieces
                pieces, room = [], chunk_bytes
    if pieces:
        yield pieces
