"""A newcomer's download of a pinned state: from several donors, some of them bad, and after a cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runnel.dht.blob_fetch import BlobFetcher
from runnel.dht.blob_server import PROTOCOL, BlobServer
from runnel.dht.blob_shelf import BlobShelf
from runnel.dht.identity import null_peer_id
from runnel.dht.memory import Link, MemoryNetwork, MemoryTransport
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import NetworkError
from runnel.node.chain import Chain
from runnel.node.joining import Source, fetch_state
from runnel.node.pinning import Pinning
from runnel.node.state_download import Fetched, StateDownload
from runnel.optim.store import OuterStore
from runnel.protocols import BlobSource, Stream
from runnel.types import Digest, short
from tests.support.crash_images import memory_folder
from tests.support.members import RUN
from tests.support.vault_bench import EVERY, FRAGMENTS, GENESIS, Bench, store_of

HOME = Link(latency_s=0.02, up_bits_s=8e6, down_bits_s=80e6)


@dataclass
class Pinned:
    """A chain with a pinned state, and who serves it."""

    chain: Chain
    path: list[Digest]
    roots: list[Digest]
    shelf: BlobShelf

    def newcomer(self) -> Chain:
        """What somebody knows who has the records and nothing else."""
        chain = Chain(GENESIS, open_rounds=1)
        for name in self.path[1:]:
            chain.add(self.chain.record(name))
        return chain


@pytest.fixture(scope="module")
def pinned() -> Iterator[Pinned]:
    with memory_folder() as folder:
        bench, shelf = Bench(folder / "state"), BlobShelf()
        pinning = Pinning(bench.log, bench.vault, shelf, every=EVERY, keep_rounds=4 * FRAGMENTS)
        for _ in range(2 * EVERY + 1):
            bench.round((True, True), give=True, reducer=True)
        roots = [bench.store.root(f) for f in range(FRAGMENTS)]
        pinning.renew(bench.chain, tuple(bench.chain.path))
        yield Pinned(bench.chain, list(bench.chain.path), roots, shelf)
        bench.log.close()


class Lying:
    """Gives other bytes than those asked for."""

    def __init__(self, source: BlobSource) -> None:
        self._source = source

    def read(self, name: Digest) -> bytes | None:
        content = self._source.read(name)
        return None if content is None else bytes((content[0] ^ 1,)) + content[1:]


async def silent(stream: Stream) -> None:
    """Takes a request and never answers."""
    await stream.receive(max_bytes=10_000, deadline=1e6)
    await asyncio.sleep(1e6)


class Donors:
    """Peers in memory, one for each source; `silent` is one that never answers."""

    def __init__(self, sources: list[BlobSource | None]) -> None:
        network = MemoryNetwork(seed=1, default_link=HOME)
        self.me = MemoryTransport(network, null_peer_id(0))
        self.network = network
        self.transports = [
            MemoryTransport(network, null_peer_id(n + 1)) for n in range(len(sources))
        ]
        self._sources = sources

    async def __aenter__(self) -> Donors:
        for transport, source in zip(self.transports, self._sources, strict=True):
            if source is None:
                await transport.serve(PROTOCOL, silent)
            else:
                await BlobServer(transport, source).start()
        self.peers = tuple(transport.local_id for transport in self.transports)
        self.fetcher = BlobFetcher(self.me)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for transport in (self.me, *self.transports):
            await transport.aclose()

    async def join(
        self, pinned: Pinned, *, keep: Path | None = None
    ) -> tuple[Fetched, OuterStore, Chain]:
        source = Source(self.me, self.peers, RUN)
        download = StateDownload(self.fetcher, self.peers, keep=keep)
        store, chain = store_of(), pinned.newcomer()
        found = await fetch_state(source, store, chain, pinned.path, download, every=EVERY)
        return found, store, chain


def test_liars_and_silent_donors_are_named_or_passed_over(pinned: Pinned) -> None:
    async def main() -> None:
        async with Donors([Lying(pinned.shelf), None, pinned.shelf]) as donors:
            found, store, chain = await donors.join(pinned)
            assert chain.number == found.number == 2 * EVERY
            last = [chain.record(name).state_root for name in chain.path[-FRAGMENTS:]]
            assert {store.root(f) for f in range(FRAGMENTS)} == set(last)
            liar, _, honest = donors.peers
            assert found.liars == (short(liar),)
            assert found.bytes_by_donor == {short(honest): found.size_bytes}
            event = found.event()
            assert event.donors == (short(honest),)
            assert event.bytes_by_donor == found.bytes_by_donor
            assert event.liars == (short(liar),)
            assert short(liar) in (event.diary() or "")
            asked = donors.fetcher.bad
            again, _, _ = await donors.join(pinned)
            assert donors.fetcher.bad == asked
            assert again.liars == (short(liar),)

    run_virtual(main)


def test_with_liars_only_the_newcomer_is_told_who_they_are(pinned: Pinned) -> None:
    async def main() -> None:
        async with Donors([Lying(pinned.shelf)] * 2) as donors:
            with pytest.raises(NetworkError, match="no state of the run can be had"):
                await donors.join(pinned)
            assert set(donors.fetcher.bad) == set(donors.peers)

    run_virtual(main)


@pytest.mark.parametrize("cut", [None, 0, 1, 20_000, 38_367])
@pytest.mark.parametrize("after", [0, 20_000, 38_500, 45_000, 76_000, 90_000])
def test_a_download_that_was_cut_anywhere_goes_on_in_the_next_process(
    pinned: Pinned, after: int, cut: int | None
) -> None:
    """The network is gone after so many bytes, then the process; what was kept is cut at any byte too."""

    async def first(keep: Path) -> None:
        async with Donors([pinned.shelf]) as donors:
            donors.network.kill(donors.peers[0], after_bytes=after)
            try:
                await donors.join(pinned, keep=keep)
            except NetworkError:
                return

    async def second(keep: Path, kept: int) -> None:
        async with Donors([pinned.shelf]) as donors:
            found, store, chain = await donors.join(pinned, keep=keep)
            last = [chain.record(name).state_root for name in chain.path[-FRAGMENTS:]]
            assert {store.root(f) for f in range(FRAGMENTS)} == set(last)
            assert found.kept_bytes == kept

    with memory_folder() as folder:
        keep = folder / "incoming"
        keep.mkdir()
        (keep / ("00" * 32)).write_bytes(b"of a state that nobody wants any more")
        run_virtual(lambda: first(keep))
        files = sorted(file for file in keep.iterdir() if file.name != "00" * 32)
        whole = [file for file in files if file.suffix != ".part"]
        assert bool(whole) == (after > 40_000)
        if whole and cut is not None:
            content = whole.pop(0)
            content.write_bytes(content.read_bytes()[:cut])
        kept = sum(file.stat().st_size for file in whole)
        run_virtual(lambda: second(keep, kept))
        assert not (keep / ("00" * 32)).exists()
