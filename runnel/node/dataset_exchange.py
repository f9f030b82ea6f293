"""Datasets travel like all content: members serve chunks by hash, a peer fetches those that it needs.

A run's manifest names its corpus by one root. The list of chunk digests under that root is a blob
of its own, served under the root itself: its reader rebuilds the root from it, so nobody has to be
believed. Then each window needs a few chunks, and they stay on disk up to a bound.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.dht.blobs import MAX_BLOB_BYTES
from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.files import remove, replace
from runnel.hashing import digest
from runnel.node.corpus import Corpus, CorpusIndex
from runnel.types import DIGEST_BYTES, Digest, short

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from runnel.dht.blob_fetch import BlobFetcher
    from runnel.dht.blob_shelf import BlobShelf
    from runnel.types import PeerId

_log = logging.getLogger(__name__)

_VERSION = 1
_CACHED = re.compile(r"[0-9a-f]{64}")


def encode_index(index: CorpusIndex) -> bytes:
    """Canonical ``[1, training digests, held-out digests]``, the digests of each joined.

    Raises:
        ValueError: over 130,000 chunks: it would not fit into one blob.
    """
    data = pack([_VERSION, b"".join(index.chunk_digests), b"".join(index.held_out_digests)])
    if len(data) > MAX_BLOB_BYTES:
        raise ValueError(
            f"{len(index.chunk_digests) + len(index.held_out_digests)} chunks need an index of"
            f" {len(data)} bytes, at most {MAX_BLOB_BYTES}: choose longer chunks"
        )
    return data


def decode_index(data: bytes | memoryview) -> CorpusIndex:
    """The index of its encoding.

    Raises:
        PeerError: "malformed".
    """
    match unpack(data, max_bytes=MAX_BLOB_BYTES):
        case [int(version), bytes(chunks), bytes(held_out)] if (
            version == _VERSION and version is not True
        ):
            return CorpusIndex(_cut(chunks), _cut(held_out))
    raise PeerError("malformed", "no corpus index of version 1")


def publish_corpus(shelf: BlobShelf, corpus: Corpus) -> CorpusIndex:
    """Puts a corpus and its index on the shelf; the chunks are held by reference.

    `withdraw_corpus` undoes it. Costs one pass of hashing: give large ones to a thread.

    Raises:
        StorageError: the shelf is full; nothing of the corpus stays on it.
        ValueError: too many chunks, or one over 4 MiB.
    """
    added: list[Digest] = []
    try:
        chunks = tuple(_kept(added, shelf.add_blob(chunk)) for chunk in corpus.chunks)
        held_out = tuple(_kept(added, shelf.add_blob(chunk)) for chunk in corpus.held_out)
        index = CorpusIndex(chunks, held_out)
        shelf.add_blob(encode_index(index), name=index.root)
    except BaseException:
        for name in added:
            shelf.drop(name)
        raise
    return index


def withdraw_corpus(shelf: BlobShelf, index: CorpusIndex) -> None:
    """Takes a published corpus off the shelf."""
    for name in (index.root, *index.chunk_digests, *index.held_out_digests):
        shelf.drop(name)


async def fetch_index(
    fetcher: BlobFetcher, data_root: Digest, donors: Sequence[PeerId], *, deadline: float
) -> CorpusIndex:
    """The index under a run's data root.

    Raises:
        NetworkError: nobody has it.
        TimeoutError: not here by `deadline` (loop time, seconds).
    """
    found: list[CorpusIndex] = []

    def is_right(content: memoryview) -> bool:
        try:
            index = decode_index(content)
        except PeerError:
            return False
        if index.root != data_root:
            return False
        found.append(index)
        return True

    await fetcher.fetch_blob(data_root, donors, deadline=deadline, is_right=is_right)
    return found[0]


class ChunkCache:
    """Chunks of one dataset, fetched when they are first asked for and kept on disk.

    Files are named by digest and checked whenever they are read; a damaged one is fetched again.
    When they exceed `max_bytes`, those that were not used for longest go first. Also a
    `runnel.protocols.BlobSource`: what was fetched can be served to others, from any thread.
    A disk that fails costs the cache, never a chunk: it is logged, and the chunk is delivered.

    Args:
        directory: of the cache; made if there is none. Other files in it are left alone.
        digests: of the dataset's chunks, in order.
        fetcher: brings what is not here.
        max_bytes: of all cached files.
        executor: reads, checks and writes; None for the loop's own.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        digests: Sequence[Digest],
        fetcher: BlobFetcher,
        *,
        max_bytes: int,
        executor: Executor | None = None,
    ) -> None:
        self._directory = Path(directory)
        self._digests = tuple(digests)
        self._fetcher = fetcher
        self._max_bytes = max_bytes
        self._executor = executor
        self._sizes = _found(self._directory)  # the least recently used first
        self._fetching: dict[Digest, asyncio.Lock] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self._sizes.values())

    def __len__(self) -> int:
        """Chunks of the dataset."""
        return len(self._digests)

    async def chunk(self, index: int, donors: Sequence[PeerId], *, deadline: float) -> bytes:
        """Chunk `index` of the dataset, from disk or from one of `donors`.

        Calls for the same chunk at the same time share one fetch. Different chunks prefer different
        donors.

        Raises:
            IndexError: there is no such chunk.
            NetworkError: nobody has it.
            TimeoutError: not here by `deadline` (loop time, seconds).
        """
        if not 0 <= index < len(self._digests):
            raise IndexError(f"chunk {index} of a dataset with {len(self._digests)}")
        name = self._digests[index]
        lock = self._fetching.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout_at(deadline), lock:
                content = await self._cached(name)
                if content is None:
                    content = await self._fetcher.fetch_blob(
                        name, _turned(donors, index), deadline=deadline
                    )
                    await self._keep(name, content)
                return content
        finally:
            if not lock.locked() and self._fetching.get(name) is lock:
                del self._fetching[name]

    async def chunks(
        self, indices: Sequence[int], donors: Sequence[PeerId], *, deadline: float
    ) -> tuple[bytes, ...]:
        """Several chunks at once, in the order of `indices`; raises like `chunk`."""
        outcomes = await asyncio.gather(
            *(self.chunk(index, donors, deadline=deadline) for index in indices),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return tuple(outcome for outcome in outcomes if isinstance(outcome, bytes))

    def read(self, name: Digest) -> bytes | None:
        """The chunk with this digest if it is on disk and right, or None."""
        try:
            content = self._path(name).read_bytes()
        except OSError:
            return None
        return content if digest(content) == name else None

    async def _cached(self, name: Digest) -> bytes | None:
        if name not in self._sizes:
            return None
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(self._executor, self.read, name)
        if content is None:
            _log.warning("cached chunk %s is damaged or gone: fetching it again", short(name))
            self._sizes.pop(name, None)
        elif name in self._sizes:
            self._sizes[name] = self._sizes.pop(name)  # now the most recently used
        return content

    async def _keep(self, name: Digest, content: bytes) -> None:
        if len(content) > self._max_bytes:
            return
        self._sizes[name] = len(content)
        leaving = []
        while self.held_bytes > self._max_bytes:
            leaving.append(next(iter(self._sizes)))
            del self._sizes[leaving[-1]]
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, self._write, name, content, leaving)
        except OSError as error:
            self._sizes.pop(name, None)
            _log.warning("chunk %s could not be cached: %s", short(name), error)

    def _write(self, name: Digest, content: bytes, leaving: Sequence[Digest]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for other in leaving:
            remove(self._path(other))
        part = self._directory / f".{secrets.token_hex(6)}.part"
        try:
            part.write_bytes(content)  # not synced: whatever a crash leaves is checked when read
            replace(part, self._path(name))
        finally:
            remove(part)

    def _path(self, name: Digest) -> Path:
        return self._directory / name.hex()


def _kept(added: list[Digest], name: Digest) -> Digest:
    added.append(name)
    return name


def _cut(joined: bytes) -> tuple[Digest, ...]:
    if len(joined) % DIGEST_BYTES:
        raise PeerError("malformed", f"{len(joined)} bytes of digests")
    return tuple(
        Digest(joined[start : start + DIGEST_BYTES])
        for start in range(0, len(joined), DIGEST_BYTES)
    )


def _turned(donors: Sequence[PeerId], by: int) -> Sequence[PeerId]:
    start = by % len(donors) if donors else 0
    return (*donors[start:], *donors[:start])


def _found(directory: Path) -> dict[Digest, int]:
    """Sizes of the cached files, the oldest first; the leftovers of a crash are deleted."""
    entries = []
    try:
        for path in directory.iterdir():
            if _CACHED.fullmatch(path.name):
                status = path.stat()
                entries.append((status.st_mtime_ns, path.name, status.st_size))
            elif re.fullmatch(r"\.[0-9a-f]{12}\.part", path.name):
                remove(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        _log.warning("the cache in %s cannot be used as it is: %s", directory, error)
    return {Digest(bytes.fromhex(name)): size for _, name, size in sorted(entries)}
