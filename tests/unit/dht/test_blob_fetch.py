"""Fetching trees from several donors, some of them slow, dead or lying, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.blob_download import FetchLimits
from runnel.dht.blob_fetch import BlobFetcher
from runnel.dht.blob_server import PROTOCOL, BlobServer, ServeLimits, encode_request
from runnel.dht.blob_shelf import BlobShelf
from runnel.dht.blob_sinks import BufferSink, FileSink
from runnel.dht.blobs import MIN_CHUNK_BYTES, Tree, tree_root
from runnel.dht.identity import null_peer_id
from runnel.dht.memory import Link, MemoryNetwork, MemoryTransport
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import NetworkError, PeerError, StorageError
from runnel.hashing import digest
from runnel.protocols import BlobSource, Stream
from runnel.types import Digest, PeerId

SMALL = MIN_CHUNK_BYTES
BIG = 128 * 1024
HOME = Link(latency_s=0.02, up_bits_s=8e6, down_bits_s=80e6)
MINUTE = 60.0
ME = null_peer_id(0)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def shelf_of(content: bytes, chunk_bytes: int = SMALL) -> BlobShelf:
    shelf = BlobShelf()
    shelf.add_bytes(content, chunk_bytes=chunk_bytes)
    return shelf


class Lying:
    """Gives every chunk with one bit changed, and the root as it is."""

    def __init__(self, source: BlobSource, root: Digest) -> None:
        self._source = source
        self._root = root

    def read(self, name: Digest) -> bytes | None:
        content = self._source.read(name)
        if content is None or name == self._root:
            return content
        return bytes((content[0] ^ 1,)) + content[1:]


class Partial:
    """Has only some of what is behind it."""

    def __init__(self, source: BlobSource, has: Callable[[Digest], bool]) -> None:
        self._source = source
        self._has = has

    def read(self, name: Digest) -> bytes | None:
        return self._source.read(name) if self._has(name) else None


class Swarm:
    def __init__(self, network: MemoryNetwork, transport: MemoryTransport) -> None:
        self.network = network
        self.transport = transport
        self.transports: list[MemoryTransport] = [transport]
        self.donors: list[PeerId] = []
        self.servers: list[BlobServer] = []

    async def serve(self, source: BlobSource, limits: ServeLimits | None = None) -> PeerId:
        donor = await self.serve_by(None)
        server = BlobServer(self.transports[-1], source, limits=limits)
        await server.start()
        self.servers.append(server)
        return donor

    async def serve_by(self, handler: Callable[[Stream], Awaitable[None]] | None) -> PeerId:
        donor = null_peer_id(len(self.transports))
        self.transports.append(MemoryTransport(self.network, donor))
        if handler is not None:
            await self.transports[-1].serve(PROTOCOL, handler)
        self.donors.append(donor)
        return donor

    def fetcher(self, limits: FetchLimits | None = None) -> BlobFetcher:
        return BlobFetcher(self.transport, limits=limits)

    async def fetch(
        self, root: Digest, size: int, fetcher: BlobFetcher | None = None, within_s: float = MINUTE
    ) -> bytearray:
        fetcher = fetcher or self.fetcher()
        deadline = asyncio.get_running_loop().time() + within_s
        return await fetcher.fetch_bytes(root, self.donors, max_total_bytes=size, deadline=deadline)


@contextlib.asynccontextmanager
async def swarm(
    sources: Sequence[BlobSource] = (), links: dict[int, Link] | None = None
) -> AsyncIterator[Swarm]:
    network = MemoryNetwork(
        seed=1,
        links={null_peer_id(number): link for number, link in (links or {}).items()},
        default_link=HOME,
    )
    made = Swarm(network, MemoryTransport(network, ME))
    try:
        for source in sources:
            await made.serve(source)
        yield made
    finally:
        for transport in made.transports:
            await transport.aclose()


def test_all_donors_are_used_and_what_arrives_is_the_content() -> None:
    content = noise(40 * BIG)
    root = tree_root([content], chunk_bytes=BIG)

    async def main() -> None:
        async with swarm([shelf_of(content, BIG) for _ in range(3)]) as s:
            out = bytearray(len(content))
            report = await s.fetcher().fetch_tree(
                root, s.donors, out=out, max_total_bytes=len(content), deadline=MINUTE
            )
            assert out == content
            assert set(report.bytes_by_donor) == set(s.donors)
            assert sum(report.bytes_by_donor.values()) == report.size_bytes == len(content)
            assert min(report.bytes_by_donor.values()) > len(content) // 6
            assert (report.kept_bytes, report.bad) == (0, {})
            # Three uplinks of 1 MB/s; the rest is round trips.
            assert len(content) / 3e6 < report.seconds < len(content) / 1e6

    run_virtual(main)


def test_a_faster_donor_brings_more() -> None:
    content = noise(80 * BIG)
    root = tree_root([content], chunk_bytes=BIG)
    fast = Link(latency_s=0.02, up_bits_s=80e6)
    slow = Link(latency_s=0.02, up_bits_s=0.8e6)

    async def main() -> None:
        shelves = [shelf_of(content, BIG) for _ in range(2)]
        async with swarm(shelves, {1: fast, 2: slow}) as s:
            out = bytearray(len(content))
            report = await s.fetcher().fetch_tree(
                root, s.donors, out=out, max_total_bytes=len(content), deadline=MINUTE
            )
            assert out == content
            assert report.bytes_by_donor[s.donors[0]] > 4 * report.bytes_by_donor[s.donors[1]] > 0

    run_virtual(main)


@settings(max_examples=30)
@given(st.integers(0, 6 * SMALL + 1), st.integers(1, 3))
def test_any_length_arrives_from_any_number_of_donors(size: int, donors: int) -> None:
    content = noise(size, seed=size)

    async def main() -> None:
        async with swarm([shelf_of(content) for _ in range(donors)]) as s:
            assert await s.fetch(tree_root([content], chunk_bytes=SMALL), size) == content

    run_virtual(main)


def test_a_liar_is_named_and_avoided_from_then_on() -> None:
    content = noise(20 * SMALL)
    root = tree_root([content], chunk_bytes=SMALL)

    async def main() -> None:
        async with swarm([Lying(shelf_of(content), root), shelf_of(content)]) as s:
            liar, honest = s.donors
            fetcher, out = s.fetcher(), bytearray(len(content))
            report = await fetcher.fetch_tree(
                root, s.donors, out=out, max_total_bytes=len(content), deadline=MINUTE
            )
            assert out == content
            assert set(report.bad) == {liar}
            assert "other content" in report.bad[liar]
            assert set(report.bytes_by_donor) == {honest}
            answered = s.servers[0].answers
            assert await s.fetch(root, len(content), fetcher) == content
            assert s.servers[0].answers == answered
            assert set(fetcher.bad) == {liar}
            with pytest.raises(NetworkError, match="nobody to ask"):
                await fetcher.fetch_blob(root, [liar], deadline=2 * MINUTE)

    run_virtual(main)


def test_with_liars_only_nothing_is_accepted() -> None:
    content = noise(5 * SMALL)
    root = tree_root([content], chunk_bytes=SMALL)

    async def main() -> None:
        async with swarm([Lying(shelf_of(content), root)] * 2) as s:
            fetcher = s.fetcher()
            with pytest.raises(NetworkError, match="other content"):
                await s.fetch(root, len(content), fetcher)
            assert set(fetcher.bad) == set(s.donors)

    run_virtual(main)


@pytest.mark.parametrize("after_bytes", [1, 2_000, 30_000, 100_000])
def test_a_donor_that_dies_delays_but_loses_nothing(after_bytes: int) -> None:
    content = noise(40 * 8192)
    root = tree_root([content], chunk_bytes=8192)

    async def main() -> None:
        async with swarm([shelf_of(content, 8192) for _ in range(2)]) as s:
            s.network.kill(s.donors[0], after_bytes=after_bytes)
            fetcher, out = s.fetcher(), bytearray(len(content))
            report = await fetcher.fetch_tree(
                root, s.donors, out=out, max_total_bytes=len(content), deadline=MINUTE
            )
            assert out == content
            assert report.bad == {}
            assert report.bytes_by_donor.get(s.donors[0], 0) <= after_bytes

    run_virtual(main)


def test_a_silent_donor_holds_up_the_end_by_one_hedge_only() -> None:
    content = noise(10 * SMALL)
    root = tree_root([content], chunk_bytes=SMALL)

    async def silent(stream: Stream) -> None:
        await stream.receive(max_bytes=10_000, deadline=1e6)
        await asyncio.sleep(1e6)

    async def main() -> None:
        async with swarm() as s:
            await s.serve_by(silent)
            await s.serve(shelf_of(content))
            out = bytearray(len(content))
            report = await s.fetcher(FetchLimits(hedge_after_s=2.0)).fetch_tree(
                root, s.donors, out=out, max_total_bytes=len(content), deadline=MINUTE
            )
            assert out == content
            assert report.seconds < 2 * 2.0 + 2.0  # once for the root, once for the chunks

    run_virtual(main)


def test_a_donor_that_cannot_be_reached_holds_up_one_blob_by_a_moment_and_is_then_asked_last() -> (
    None
):
    contents = [noise(SMALL + number) for number in range(6)]

    async def main() -> None:
        async with swarm() as s:
            gone = await s.serve(BlobShelf())
            shelf = BlobShelf()
            for content in contents:
                shelf.add_bytes(content, chunk_bytes=BIG)
            await s.serve(shelf)
            s.network.cut(ME, gone)
            fetcher, loop, spans_s = s.fetcher(), asyncio.get_running_loop(), list[float]()
            for content in contents:
                began_s, root = loop.time(), tree_root([content], chunk_bytes=BIG)
                found = await fetcher.fetch_bytes(
                    root, s.donors, max_total_bytes=BIG, deadline=MINUTE
                )
                assert found == content
                spans_s.append(loop.time() - began_s)
            hold_s = FetchLimits().hold_s
            assert hold_s < spans_s[0] < 2 * hold_s
            assert max(spans_s[1:]) < hold_s

    run_virtual(main)


def test_the_only_donor_may_be_slow_beyond_the_first_deadline() -> None:
    content = noise(4 * 8192)
    crawl = Link(latency_s=0.02, up_bits_s=8 * 1024.0)

    async def main() -> None:
        async with swarm([shelf_of(content, 8192)], {1: crawl}) as s:
            fetcher = s.fetcher(FetchLimits(blob_s=5.0))  # a chunk takes 8 s, two at once 16 s
            root = tree_root([content], chunk_bytes=8192)
            assert await s.fetch(root, len(content), fetcher, within_s=600) == content

    run_virtual(main)


def test_a_missing_tree_is_said_to_be_missing_at_once() -> None:
    async def main() -> None:
        async with swarm([BlobShelf(), BlobShelf()]) as s:
            with pytest.raises(NetworkError, match="has no blob"):
                await s.fetch(digest(b"nobody has this"), 100)
            assert asyncio.get_running_loop().time() < 1.0
            assert s.servers[0].answers == {"missing": 1}

    run_virtual(main)


def test_nobody_reachable_is_a_network_error_that_names_the_peers() -> None:
    async def main() -> None:
        async with swarm() as s:
            s.donors = [null_peer_id(77)]
            with pytest.raises(NetworkError, match="cannot be reached"):
                await s.fetch(digest(b"x"), 100)
            s.donors = [ME]
            with pytest.raises(NetworkError, match="nobody to ask"):
                await s.fetch(digest(b"x"), 100)

    run_virtual(main)


def test_donors_that_have_half_each_make_a_whole() -> None:
    content = noise(20 * SMALL)
    root = tree_root([content], chunk_bytes=SMALL)
    shelf = shelf_of(content)
    even = {digest(content[i * SMALL : (i + 1) * SMALL]) for i in range(0, 20, 2)}

    async def main() -> None:
        halves = [
            Partial(shelf, lambda name: name in even or name == root),
            Partial(shelf, lambda name: name not in even),
        ]
        async with swarm(halves) as s:
            assert await s.fetch(root, len(content)) == content

    run_virtual(main)


def test_a_missing_chunk_fails_with_its_name() -> None:
    content = noise(3 * SMALL)
    lost = digest(content[SMALL : 2 * SMALL])

    async def main() -> None:
        async with swarm([Partial(shelf_of(content), lambda name: name != lost)] * 2) as s:
            with pytest.raises(NetworkError, match=f"1 of 3 blobs .first {lost[:4].hex()}"):
                await s.fetch(tree_root([content], chunk_bytes=SMALL), len(content))

    run_virtual(main)


def test_an_oversized_claim_is_refused_before_any_chunk_is_asked_for() -> None:
    content = noise(10 * SMALL)

    async def main() -> None:
        async with swarm([shelf_of(content)]) as s:
            fetcher = s.fetcher()
            with pytest.raises(PeerError) as caught:
                await s.fetch(tree_root([content], chunk_bytes=SMALL), len(content) - 1, fetcher)
            assert caught.value.reason == "too-large"
            assert s.servers[0].answers == {"found": 1}
            assert fetcher.bad == {}  # the donor gave what it was asked for

    run_virtual(main)


@pytest.mark.parametrize(
    "root_blob", [b"", b"not a root", Tree(SMALL, SMALL, (digest(b""),)).encode()[:-1]]
)
def test_a_root_that_is_no_root_is_a_peer_error(root_blob: bytes) -> None:
    async def main() -> None:
        shelf = BlobShelf()
        root = shelf.add_blob(root_blob)
        async with swarm([shelf]) as s:
            with pytest.raises(PeerError) as caught:
                await s.fetch(root, 10_000)
            assert caught.value.reason == "malformed"

    run_virtual(main)


def test_a_buffer_of_another_size_is_refused_untouched() -> None:
    content = noise(2 * SMALL)

    async def main() -> None:
        async with swarm([shelf_of(content)]) as s:
            out = bytearray(2 * SMALL + 1)
            with pytest.raises(PeerError) as caught:
                await s.fetcher().fetch_tree(
                    tree_root([content], chunk_bytes=SMALL),
                    s.donors,
                    out=out,
                    max_total_bytes=10_000,
                    deadline=MINUTE,
                )
            assert caught.value.reason == "wrong-size"
            assert out == bytes(2 * SMALL + 1)

    run_virtual(main)


def test_the_deadline_holds_and_the_buffer_is_free_afterwards() -> None:
    content = noise(1000 * SMALL)

    async def main() -> None:
        async with swarm([shelf_of(content)]) as s:
            out = bytearray(len(content))
            with pytest.raises(TimeoutError):
                await s.fetcher().fetch_tree(
                    tree_root([content], chunk_bytes=SMALL),
                    s.donors,
                    out=out,
                    max_total_bytes=len(content),
                    deadline=1.0,
                )
            assert asyncio.get_running_loop().time() < 2.5
            before = bytes(out)
            assert any(before)
            await asyncio.sleep(30.0)
            assert bytes(out) == before

    run_virtual(main)


@pytest.mark.parametrize(
    "answer", [b"", b"\x03", b"\x01extra", b"\x00" + bytes(SMALL + 1), b"\x00short"]
)
def test_an_answer_that_is_none_names_the_donor(answer: bytes) -> None:
    content = noise(SMALL)
    root_blob = Tree(SMALL, SMALL, (digest(content),)).encode()

    async def main() -> None:
        async with swarm() as s:
            odd_peer = await s.serve_by(lambda stream: _one(stream, root_blob, answer))
            await s.serve(shelf_of(content))
            fetcher = s.fetcher(FetchLimits(streams_per_donor=1))
            out = bytearray(SMALL)
            await fetcher.fetch_tree(
                digest(root_blob), s.donors, out=out, max_total_bytes=SMALL, deadline=MINUTE
            )
            assert out == content
            assert set(fetcher.bad) == {odd_peer}

    async def _one(stream: Stream, root_blob: bytes, answer: bytes) -> None:
        request = await stream.receive(max_bytes=10_000, deadline=1e6)
        is_root = request == encode_request([digest(root_blob)])
        await stream.send(b"\x00" + root_blob if is_root else answer, deadline=1e6)
        await stream.receive(max_bytes=10_000, deadline=1e6)

    run_virtual(main)


# Servers


@pytest.mark.parametrize(
    "one", [ServeLimits(requests_per_peer=1), ServeLimits(requests=1)], ids=["per-peer", "in-all"]
)
def test_a_busy_donor_says_so_and_the_others_do_the_work(one: ServeLimits) -> None:
    content = noise(60 * 8192)
    root = tree_root([content], chunk_bytes=8192)

    async def main() -> None:
        async with swarm() as s:
            await s.serve(shelf_of(content, 8192), one)
            await s.serve(shelf_of(content, 8192))
            assert await s.fetch(root, len(content)) == content
            busy, free = s.servers
            assert busy.answers["busy"] > 0
            assert free.answers["found"] > busy.answers["found"] > 0
            assert s.fetcher().bad == {}

    run_virtual(main)


def test_a_donor_that_is_always_busy_is_waited_for_until_the_deadline() -> None:
    async def busy(stream: Stream) -> None:
        while len(await stream.receive(max_bytes=10_000, deadline=1e6)) > 10:
            await stream.send(b"\x02", deadline=1e6)

    async def main() -> None:
        async with swarm() as s:
            await s.serve_by(busy)
            fetcher = s.fetcher()
            with pytest.raises(TimeoutError):
                await s.fetch(digest(b"x"), 100, fetcher, within_s=20.0)
            assert 20.0 <= asyncio.get_running_loop().time() < 22.0
            assert fetcher.bad == {}

    run_virtual(main)


def test_a_request_for_many_is_answered_in_order() -> None:
    shelf = BlobShelf()
    names = [shelf.add_blob(b"%d" % i) for i in range(3)]

    async def main() -> None:
        async with swarm([shelf]) as s:
            stream = await s.transport.open(s.donors[0], PROTOCOL, deadline=MINUTE)
            wanted = [names[2], digest(b"none"), names[0]]
            await stream.send(encode_request(wanted), deadline=MINUTE)
            answers = [await stream.receive(max_bytes=100, deadline=MINUTE) for _ in wanted]
            assert answers == [b"\x002", b"\x01", b"\x000"]
            await stream.send(encode_request([]), deadline=MINUTE)
            await stream.aclose()
            assert s.servers[0].answers == {"found": 2, "missing": 1}

    run_virtual(main)


@pytest.mark.parametrize("request_bytes", [b"\xc0", b"x" * 10_000, encode_request([]) + b"x"])
def test_a_malformed_request_ends_that_conversation_only(request_bytes: bytes) -> None:
    content = noise(100)

    async def main() -> None:
        async with swarm([shelf_of(content)]) as s:
            stream = await s.transport.open(s.donors[0], PROTOCOL, deadline=MINUTE)
            with contextlib.suppress(PeerError):  # it may be refused from its length already
                await stream.send(request_bytes, deadline=MINUTE)
            with pytest.raises(PeerError):
                await stream.receive(max_bytes=100, deadline=MINUTE)
            await stream.aclose()
            assert await s.fetch(tree_root([content], chunk_bytes=SMALL), 100) == content

    run_virtual(main)


def test_one_peer_holds_a_bounded_number_of_conversations() -> None:
    async def main() -> None:
        async with swarm() as s:
            await s.serve(BlobShelf(), ServeLimits(streams_per_peer=2))
            opened = []
            for _ in range(3):
                stream = await s.transport.open(s.donors[0], PROTOCOL, deadline=MINUTE)
                opened.append(stream)
                with contextlib.suppress(PeerError):
                    await stream.send(encode_request([digest(b"")]), deadline=MINUTE)
            assert s.servers[0].answers["refused"] == 1
            with pytest.raises(PeerError):
                await opened[2].receive(max_bytes=100, deadline=MINUTE)
            assert bytes(await opened[1].receive(max_bytes=100, deadline=MINUTE)) == b"\x01"

    run_virtual(main)


# Files and resuming


async def fetch_file(s: Swarm, root: Digest, path: Path, size: int) -> int:
    """Fetches into a file; the bytes that were kept from before."""
    now = asyncio.get_running_loop().time()
    report = await s.fetcher().fetch_tree(
        root, s.donors, out=path, max_total_bytes=size, deadline=now + MINUTE
    )
    return report.kept_bytes


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


@settings(max_examples=40)
@given(st.data())
def test_a_fetch_cut_at_any_byte_costs_at_most_one_chunk(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 5 * SMALL + 3), label="size")
    cut = data.draw(st.integers(0, size), label="cut")
    content = noise(size, seed=size)

    async def main(folder: Path) -> None:
        path = folder / "state"
        part_of(path).write_bytes(content[:cut])
        async with swarm([shelf_of(content)]) as s:
            kept = await fetch_file(s, tree_root([content], chunk_bytes=SMALL), path, size)
        assert path.read_bytes() == content
        assert kept == (size if cut == size else cut // SMALL * SMALL)
        assert not part_of(path).exists()

    with tempfile.TemporaryDirectory() as folder:
        run_virtual(lambda: main(Path(folder)))


@settings(max_examples=25)
@given(st.integers(1, 6 * SMALL), st.floats(0.01, 1.5))
def test_a_fetch_stopped_at_any_time_is_taken_up_again(size: int, after_s: float) -> None:
    content = noise(size, seed=size)
    root = tree_root([content], chunk_bytes=SMALL)
    slow = Link(latency_s=0.05, up_bits_s=20_000.0)

    async def main(folder: Path) -> None:
        path = folder / "deep" / "state"
        async with swarm([shelf_of(content)], {1: slow}) as s:
            before = s.transport.traffic.received()
            with contextlib.suppress(TimeoutError):
                await s.fetcher().fetch_tree(
                    root, s.donors, out=path, max_total_bytes=size, deadline=after_s
                )
            here = part_of(path).read_bytes() if part_of(path).exists() else b""
            right = sum(
                here[i : i + SMALL] == content[i : i + SMALL] for i in range(0, size, SMALL)
            )
            kept = await fetch_file(s, root, path, size)
            assert kept >= min(right * SMALL, size - SMALL)
            assert s.transport.traffic.received() > before
        assert path.read_bytes() == content

    with tempfile.TemporaryDirectory() as folder:
        run_virtual(lambda: main(Path(folder)))


def test_a_damaged_longer_or_foreign_part_file_is_mended(tmp_path: Path) -> None:
    content = noise(4 * SMALL + 9)
    root = tree_root([content], chunk_bytes=SMALL)
    damaged = bytearray(content)
    damaged[SMALL] ^= 1

    async def main() -> None:
        async with swarm([shelf_of(content)]) as s:
            for number, (left, kept) in enumerate(
                [
                    (bytes(damaged) + b"and more", len(content) - SMALL),
                    (noise(10_000, seed=5), 0),
                ]
            ):
                path = tmp_path / f"state{number}"
                part_of(path).write_bytes(left)
                assert await fetch_file(s, root, path, len(content)) == kept
                assert path.read_bytes() == content

    run_virtual(main)


def test_a_failed_fetch_leaves_no_file_and_keeps_an_older_one(tmp_path: Path) -> None:
    content = noise(3 * SMALL)
    root = tree_root([content], chunk_bytes=SMALL)
    lost = digest(content[SMALL : 2 * SMALL])
    (tmp_path / "old").write_bytes(b"older")

    async def main() -> None:
        async with swarm([Partial(shelf_of(content), lambda name: name != lost)]) as s:
            for name in ("old", "new"):
                with pytest.raises(NetworkError):
                    await fetch_file(s, root, tmp_path / name, len(content))

    run_virtual(main)
    assert (tmp_path / "old").read_bytes() == b"older"
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    content = noise(3 * SMALL)
    (tmp_path / "file").write_bytes(b"")

    async def main() -> None:
        async with swarm([shelf_of(content)]) as s:
            with pytest.raises(StorageError, match="cannot be written"):
                await fetch_file(
                    s,
                    tree_root([content], chunk_bytes=SMALL),
                    tmp_path / "file" / "state",
                    len(content),
                )

    run_virtual(main)


def test_a_disk_that_fails_half_way_ends_the_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(10 * SMALL)
    writes: list[int] = []

    def failing(file: int, data: memoryview, offset: int) -> None:
        writes.append(offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runnel.dht.blob_sinks.write_at", failing)

    async def main() -> None:
        async with swarm([shelf_of(content)] * 2) as s:
            with pytest.raises(StorageError, match="no space left on device"):
                await fetch_file(
                    s, tree_root([content], chunk_bytes=SMALL), tmp_path / "state", len(content)
                )
            assert asyncio.get_running_loop().time() < 2.0

    run_virtual(main)
    assert writes
    assert not (tmp_path / "state").exists()


def test_a_job_that_comes_late_changes_nothing(tmp_path: Path) -> None:
    tree = Tree(4, SMALL, (digest(b"full"),))
    out = bytearray(4)
    for sink in (BufferSink(tree, out), FileSink(tree, tmp_path / "state")):
        assert sink.open() == [0]
        sink.close()
        sink.put(0, memoryview(b"full"))
        sink.finish()
        sink.close()
    assert out == bytes(4)
    out.append(0)  # nobody holds on to the buffer
    assert part_of(tmp_path / "state").read_bytes() == b""
    assert not (tmp_path / "state").exists()


def test_checking_and_writing_work_in_threads_too(tmp_path: Path) -> None:
    """On a real loop with a real pool: the same content, and the pool's threads end."""
    content = noise(50 * 4096)
    root = tree_root([content], chunk_bytes=4096)

    async def main() -> None:
        network = MemoryNetwork(seed=1)
        ours, theirs = MemoryTransport(network, ME), MemoryTransport(network, null_peer_id(1))
        with ThreadPoolExecutor(2) as pool:
            await BlobServer(theirs, shelf_of(content, 4096), executor=pool).start()
            fetcher = BlobFetcher(ours, executor=pool)
            deadline = asyncio.get_running_loop().time() + MINUTE
            await fetcher.fetch_tree(
                root,
                [theirs.local_id],
                out=tmp_path / "state",
                max_total_bytes=len(content),
                deadline=deadline,
            )
            await ours.aclose()
            await theirs.aclose()
        assert (tmp_path / "state").read_bytes() == content

    with asyncio.Runner() as runner:
        runner.run(main())
