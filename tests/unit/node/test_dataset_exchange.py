"""Datasets as content: an index under its Merkle root, chunks on demand, a bounded cache."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.blob_fetch import BlobFetcher
from runnel.dht.blob_server import BlobServer
from runnel.dht.blob_shelf import BlobShelf
from runnel.dht.identity import null_peer_id
from runnel.dht.memory import Link, MemoryNetwork, MemoryTransport
from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack
from runnel.errors import NetworkError, PeerError, StorageError
from runnel.hashing import digest
from runnel.node.corpus import Corpus, CorpusIndex, cut_corpus
from runnel.node.dataset_exchange import (
    ChunkCache,
    decode_index,
    encode_index,
    fetch_index,
    publish_corpus,
    withdraw_corpus,
)
from runnel.protocols import BlobSource
from runnel.types import Digest, PeerId

CORPUS = cut_corpus(random.Random(1).randbytes(128 * 1024))
CHUNK = max(len(chunk) for chunk in CORPUS.chunks)
SOON = 60.0

digests = st.lists(st.binary(min_size=32, max_size=32).map(Digest), max_size=5).map(tuple)


class Peers:
    """One peer that fetches, and some that serve."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(seed=1, default_link=Link(latency_s=0.01, up_bits_s=8e6))
        self.transport = MemoryTransport(self.network, null_peer_id(0))
        self.fetcher = BlobFetcher(self.transport)
        self.donors: list[PeerId] = []
        self.servers: list[BlobServer] = []
        self.transports = [self.transport]

    async def serve(self, source: BlobSource) -> None:
        donor = null_peer_id(len(self.transports))
        self.transports.append(MemoryTransport(self.network, donor))
        self.servers.append(BlobServer(self.transports[-1], source))
        await self.servers[-1].start()
        self.donors.append(donor)

    @property
    def found(self) -> list[int]:
        return [server.answers.get("found", 0) for server in self.servers]


@contextlib.asynccontextmanager
async def peers(*sources: BlobSource) -> AsyncIterator[Peers]:
    made = Peers()
    try:
        for source in sources:
            await made.serve(source)
        yield made
    finally:
        for transport in made.transports:
            await transport.aclose()


def published() -> BlobShelf:
    shelf = BlobShelf()
    publish_corpus(shelf, CORPUS)
    return shelf


@given(digests, digests)
def test_an_index_comes_back_as_it_was(
    chunks: tuple[Digest, ...], held_out: tuple[Digest, ...]
) -> None:
    index = CorpusIndex(chunks, held_out)
    assert decode_index(encode_index(index)) == index


@pytest.mark.parametrize(
    "data",
    [b"", pack([1, b""]), pack([2, b"", b""]), pack([True, b"", b""]), pack([1, b"x", b""])],
)
def test_other_bytes_are_no_index(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        decode_index(data)
    assert caught.value.reason == "malformed"


def test_an_index_too_long_for_a_blob_is_refused() -> None:
    with pytest.raises(ValueError, match="choose longer chunks"):
        encode_index(CorpusIndex((digest(),) * 140_000, ()))


def test_a_newcomer_that_knows_the_root_only_gets_exactly_the_corpus(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            index = await fetch_index(p.fetcher, CORPUS.root, p.donors, deadline=SOON)
            assert index == CORPUS.index
            for digests_, expected in (
                (index.chunk_digests, CORPUS.chunks),
                (index.held_out_digests, CORPUS.held_out),
            ):
                cache = ChunkCache(tmp_path, digests_, p.fetcher, max_bytes=1 << 30)
                assert len(cache) == len(expected)
                got = await cache.chunks(range(len(cache)), p.donors, deadline=SOON)
                assert got == expected

    run_virtual(main)


def test_an_index_of_another_corpus_is_a_lie_about_this_one() -> None:
    forged = BlobShelf()
    other = CorpusIndex(CORPUS.index.chunk_digests[1:], CORPUS.index.held_out_digests)
    forged.add_blob(encode_index(other), name=CORPUS.root)
    junk = BlobShelf()
    junk.add_blob(b"junk", name=CORPUS.root)

    async def main() -> None:
        async with peers(forged, junk, published()) as p:
            index = await fetch_index(p.fetcher, CORPUS.root, p.donors, deadline=SOON)
            assert index == CORPUS.index
            assert set(p.fetcher.bad) == set(p.donors[:2])

    run_virtual(main)


def test_a_corpus_is_published_whole_or_not_at_all_and_can_be_withdrawn() -> None:
    shelf = BlobShelf(max_memory_bytes=CORPUS.size_bytes)
    with pytest.raises(StorageError):
        publish_corpus(shelf, CORPUS)
    assert (shelf.num_held, shelf.held_bytes) == (0, 0)
    shelf = BlobShelf()
    repeated = Corpus((b"same", b"same", b"other"), (b"same",))
    index = publish_corpus(shelf, repeated)
    assert index == repeated.index
    assert shelf.num_held == 3
    withdraw_corpus(shelf, index)
    assert (shelf.num_held, shelf.held_bytes) == (0, 0)


def test_only_what_a_window_needs_is_fetched_and_only_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            for _ in range(2):
                chunks = await cache.chunks((5, 2), p.donors, deadline=SOON)
                assert chunks == (CORPUS.chunks[5], CORPUS.chunks[2])
            assert p.found == [2]
            assert p.transport.traffic.received("blob") < 3 * CHUNK
            assert cache.held_bytes == len(CORPUS.chunks[5]) + len(CORPUS.chunks[2])
            again = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            assert await again.chunk(5, [], deadline=SOON) == CORPUS.chunks[5]
            assert p.found == [2]

    run_virtual(main)


def test_calls_for_one_chunk_at_the_same_time_share_a_fetch(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            assert set(await cache.chunks([3] * 5, p.donors, deadline=SOON)) == {CORPUS.chunks[3]}
            assert p.found == [1]

    run_virtual(main)


def test_different_chunks_come_from_different_donors(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published(), published(), published()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            await cache.chunks(range(9), p.donors, deadline=SOON)
            assert p.found == [3, 3, 3]

    run_virtual(main)


def test_the_cache_keeps_within_its_bound_what_was_used_last(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=3 * CHUNK)
            for index in (0, 1, 2, 0, 3):
                assert await cache.chunk(index, p.donors, deadline=SOON) == CORPUS.chunks[index]
                on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
                assert on_disk == cache.held_bytes <= 3 * CHUNK
            names = {path.name for path in tmp_path.iterdir()}
            assert names == {CORPUS.chunk_digests[index].hex() for index in (0, 2, 3)}

    run_virtual(main)


def test_a_chunk_larger_than_the_cache_is_delivered_all_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=100)
            assert await cache.chunk(0, p.donors, deadline=SOON) == CORPUS.chunks[0]
            assert list(tmp_path.iterdir()) == []

    run_virtual(main)


@pytest.mark.parametrize("damage", [b"", b"other bytes", None])
def test_a_damaged_file_is_fetched_again(tmp_path: Path, damage: bytes | None) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            await cache.chunk(0, p.donors, deadline=SOON)
            path = tmp_path / CORPUS.chunk_digests[0].hex()
            path.unlink() if damage is None else path.write_bytes(damage)
            assert cache.read(CORPUS.chunk_digests[0]) is None
            assert await cache.chunk(0, p.donors, deadline=SOON) == CORPUS.chunks[0]
            assert path.read_bytes() == CORPUS.chunks[0]
            assert p.found == [2]

    run_virtual(main)


def test_what_a_crash_left_in_the_folder_is_cleared_and_the_rest_is_not_ours(
    tmp_path: Path,
) -> None:
    (tmp_path / ".0123456789ab.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / CORPUS.chunk_digests[1].hex()).write_bytes(CORPUS.chunks[1])

    async def main() -> None:
        async with peers() as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            assert cache.held_bytes == len(CORPUS.chunks[1])
            assert await cache.chunk(1, [], deadline=SOON) == CORPUS.chunks[1]

    run_virtual(main)
    assert not (tmp_path / ".0123456789ab.part").exists()
    assert (tmp_path / "notes.txt").exists()


def test_what_was_fetched_is_served_to_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            await cache.chunk(4, p.donors, deadline=SOON)
            await p.serve(cache)
            name = CORPUS.chunk_digests[4]
            content = await p.fetcher.fetch_blob(name, p.donors[1:], deadline=SOON)
            assert content == CORPUS.chunks[4]
            with pytest.raises(NetworkError):
                await p.fetcher.fetch_blob(CORPUS.chunk_digests[5], p.donors[1:], deadline=SOON)

    run_virtual(main)


def test_a_disk_that_fails_costs_the_cache_and_not_the_chunk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def main() -> None:
        async with peers(published()) as p:
            cache = ChunkCache(
                tmp_path / "file" / "cache", CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30
            )
            assert await cache.chunk(0, p.donors, deadline=SOON) == CORPUS.chunks[0]
            assert cache.held_bytes == 0

    run_virtual(main)
    assert "could not be cached" in caplog.text


def test_a_chunk_that_nobody_has_or_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(BlobShelf()) as p:
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            with pytest.raises(NetworkError, match="has no blob"):
                await cache.chunk(0, p.donors, deadline=SOON)
            with pytest.raises(NetworkError, match="has no blob"):
                await cache.chunks((0, 1), p.donors, deadline=SOON)
            with pytest.raises(NetworkError, match="nobody to ask"):
                await cache.chunk(0, [], deadline=SOON)
            for index in (-1, len(CORPUS.chunks)):
                with pytest.raises(IndexError, match="of a dataset with"):
                    await cache.chunk(index, p.donors, deadline=SOON)

    run_virtual(main)


def test_the_deadline_of_a_chunk_holds(tmp_path: Path) -> None:
    async def main() -> None:
        async with peers(published()) as p:
            p.network.cut(p.transport.local_id, p.donors[0])
            cache = ChunkCache(tmp_path, CORPUS.chunk_digests, p.fetcher, max_bytes=1 << 30)
            with pytest.raises(TimeoutError):
                await cache.chunk(0, p.donors, deadline=5.0)
            assert asyncio.get_running_loop().time() < 7.0
            p.network.heal()
            assert await cache.chunk(0, p.donors, deadline=SOON) == CORPUS.chunks[0]

    run_virtual(main)
