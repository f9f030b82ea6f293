"""The run's text: from this machine if it is that, else from members, checked, and taken up again."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runnel.dht.blob_server import BlobServer
from runnel.dht.blob_shelf import BlobShelf
from runnel.dht.identity import null_peer_id
from runnel.dht.memory import Link, MemoryNetwork, MemoryTransport
from runnel.dht.virtual_loop import run_virtual
from runnel.errors import InputFileError, NetworkError, StorageError
from runnel.hashing import digest
from runnel.node import text_source
from runnel.node.config import MachineConfig
from runnel.node.corpus import Corpus, cut_corpus
from runnel.node.dataset_exchange import publish_corpus
from runnel.node.entrance import Entrance
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.node.place import Local
from runnel.node.runtime import Runtime
from runnel.node.text_source import (
    INDEX_NAME,
    TextRequest,
    corpus_of_run,
    fetch_corpus,
    own_corpus,
)
from runnel.protocols import BlobSource
from runnel.types import Digest, PeerId

TEXT = random.Random(1).randbytes(256 * 1024)
CORPUS = cut_corpus(TEXT, max_chunk_bytes=16 * 1024)
CHUNKS = len(CORPUS.chunks) + len(CORPUS.held_out)
ME = null_peer_id(0)


class Swarm:
    """A newcomer's transport and members that serve; on a virtual loop."""

    def __init__(self, folder: Path, **link: float) -> None:
        settings: dict[str, Any] = {"latency_s": 0.01, "up_bits_s": 8e6, **link}
        self.network = MemoryNetwork(seed=1, default_link=Link(**settings))
        self.transport = MemoryTransport(self.network, ME)
        self.folder = folder
        self.donors: list[PeerId] = []
        self.servers: list[BlobServer] = []
        self.asked = 0

    async def serve(self, source: BlobSource) -> PeerId:
        donor = null_peer_id(len(self.donors) + 1)
        self.servers.append(BlobServer(MemoryTransport(self.network, donor), source))
        await self.servers[-1].start()
        self.donors.append(donor)
        return donor

    async def find(self) -> Sequence[PeerId]:
        self.asked += 1
        return self.donors

    def request(self, **other: Any) -> TextRequest:
        return TextRequest(root=CORPUS.root, folder=self.folder, find_donors=self.find, **other)

    async def fetch(self, **other: Any) -> Corpus:
        return await fetch_corpus(self.transport, self.request(**other))

    @property
    def found(self) -> list[int]:
        return [server.answers.get("found", 0) for server in self.servers]


class Wrong:
    """Says yes to everything, with other bytes."""

    def read(self, name: Digest) -> bytes | None:
        return b"not what is called " + name


class Partial:
    """A shelf that loses everything after so many reads."""

    def __init__(self, shelf: BlobShelf, reads: int) -> None:
        self._shelf, self._left = shelf, reads

    def read(self, name: Digest) -> bytes | None:
        self._left -= 1
        return self._shelf.read(name) if self._left >= 0 else None


def full() -> BlobShelf:
    shelf = BlobShelf()
    publish_corpus(shelf, CORPUS)
    return shelf


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return run_virtual(main, limit_s=3600.0)


def test_a_newcomer_gets_exactly_the_text_and_hears_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runnel.node.text_source")

    async def main() -> None:
        swarm = Swarm(tmp_path / "text", up_bits_s=1e5)  # 256 kB take some twenty seconds
        await swarm.serve(full())
        assert await swarm.fetch() == CORPUS

    run(main)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"the run's text: {CHUNKS} chunks, 0 B of it here already")
    assert any(line.startswith("text: ") and f"of {CHUNKS} chunks" in line for line in lines)
    assert "hashes match" in lines[-1]


def test_what_has_arrived_once_is_not_fetched_again(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = Swarm(tmp_path / "text")
        await swarm.serve(full())
        await swarm.fetch()
        assert swarm.found == [CHUNKS + 1]
        swarm.asked = 0
        assert await swarm.fetch() == CORPUS
        assert swarm.found == [CHUNKS + 1]
        assert swarm.asked == 0  # whoever has the text needs no member for it

    run(main)


def test_after_a_break_only_the_rest_is_fetched(tmp_path: Path) -> None:
    async def main() -> None:
        broken = Swarm(tmp_path / "text")
        await broken.serve(Partial(full(), 8))
        with pytest.raises(NetworkError, match="what has arrived is kept"):
            await broken.fetch(patience_s=10.0)
        swarm = Swarm(tmp_path / "text")
        await swarm.serve(full())
        assert await swarm.fetch() == CORPUS
        assert swarm.found == [CHUNKS - 7]  # the index and seven chunks were here

    run(main)


def test_a_member_that_comes_later_is_found_and_one_that_goes_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = Swarm(tmp_path / "text")
        asked: list[float] = []

        async def find() -> Sequence[PeerId]:
            asked.append(asyncio.get_running_loop().time())
            if len(asked) == 3:
                await swarm.serve(Partial(full(), 6))
            if len(asked) == 5:
                await swarm.serve(full())
            return swarm.donors

        wanted = TextRequest(root=CORPUS.root, folder=swarm.folder, find_donors=find)
        assert await fetch_corpus(swarm.transport, wanted) == CORPUS
        assert swarm.found == [6, CHUNKS - 5]
        assert asked == sorted(set(asked))  # a pause lies between two questions

    run(main)


def test_wrong_bytes_are_never_taken(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = Swarm(tmp_path / "text")
        await swarm.serve(Wrong())
        await swarm.serve(full())
        assert await swarm.fetch() == CORPUS

    run(main)


def test_files_that_were_changed_meanwhile_are_fetched_again(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = Swarm(tmp_path / "text")
        await swarm.serve(full())
        await swarm.fetch()
        (swarm.folder / INDEX_NAME).write_bytes(b"\x93\x01\xc4\x00\xc4\x00")  # an empty text's
        (swarm.folder / digest(CORPUS.chunks[3]).hex()).write_bytes(CORPUS.chunks[4])
        assert await swarm.fetch() == CORPUS
        assert swarm.found == [CHUNKS + 3]
        assert await swarm.fetch() == CORPUS
        assert swarm.found == [CHUNKS + 3]

    run(main)


def test_without_members_it_ends_in_one_line(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = Swarm(tmp_path / "text")
        with pytest.raises(NetworkError, match="join again when more of them are there") as caught:
            await swarm.fetch(patience_s=30.0)
        assert "\n" not in str(caught.value)
        assert 30 <= asyncio.get_running_loop().time() < 60

    run(main)


def test_a_text_that_is_too_long_is_refused_while_it_arrives(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = Swarm(tmp_path / "text")
        await swarm.serve(full())
        with pytest.raises(StorageError, match="expected one that fits"):
            await swarm.fetch(max_bytes=100_000)
        assert swarm.found[0] < CHUNKS - 4

    run(main)


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text").write_text("a file where a folder should be")

    async def main() -> None:
        swarm = Swarm(tmp_path / "text")
        await swarm.serve(full())
        assert await swarm.fetch() == CORPUS

    run(main)
    assert "could not be kept" in caplog.text


# -- whose text it is


def entrance_of(spec: RunSpec, root: Digest | None, folder: Path, runtime: Any = None) -> Entrance:
    """To a run whose owner is on this machine, as `ME`."""
    genesis = SimpleNamespace(data_root=root)
    manifest = None if root is None else SimpleNamespace(genesis=genesis, spec=spec)
    place = Local(spec=spec, machine=MachineConfig.at(folder))
    fake = SimpleNamespace(
        manifest=manifest,
        place=place,
        folder=lambda: folder,
        runtime=runtime,
        network=SimpleNamespace(transport=MemoryTransport(MemoryNetwork(seed=1), ME)),
        identity=SimpleNamespace(peer_id=ME),
    )
    return cast("Entrance", fake)


def spec_of(text: str) -> RunSpec:
    return make_spec(
        parse_overrides(["run.name=text", f'data.text="{text}"', "data.chunk_bytes=16384"]),
        source="a test",
    )


async def nobody() -> Sequence[PeerId]:
    return ()


async def unasked() -> Sequence[PeerId]:
    raise AssertionError("nobody can have the text")


def fetch_into(folder: Path) -> None:
    """Leaves the run's text in `folder`, as an earlier fetch does."""

    async def main() -> None:
        swarm = Swarm(folder)
        await swarm.serve(full())
        await swarm.fetch()

    run(main)


def test_who_founds_a_run_brings_its_text(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(TEXT)
    spec = spec_of(str(tmp_path / "mine.txt"))
    own = own_corpus(spec)
    assert own.root == cut_corpus(TEXT, validation_share=0.05, max_chunk_bytes=16384).root
    assert corpus_of_run(entrance_of(spec, None, tmp_path), own, nobody, threading.Event()) is own
    same = entrance_of(spec, own.root, tmp_path)
    assert corpus_of_run(same, own, nobody, threading.Event()) is own


def test_the_standard_library_is_used_where_it_has_the_runs_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_source, "stdlib_corpus", lambda **_: CORPUS)
    here = entrance_of(spec_of("stdlib"), CORPUS.root, tmp_path)
    assert corpus_of_run(here, None, nobody, threading.Event()) is CORPUS


@pytest.mark.parametrize("why", ["another version", "no sources", "a file"])
def test_any_other_text_is_fetched_into_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def library(**_: object) -> Corpus:
        if why == "no sources":
            raise InputFileError("the Python library has 0 bytes of readable sources")
        return cut_corpus(TEXT[::-1])

    async def fetched(_: object, wanted: TextRequest) -> Corpus:
        assert wanted.root == CORPUS.root
        assert wanted.folder == tmp_path / "text"
        return CORPUS

    monkeypatch.setattr(text_source, "last_members", lambda *_: (ME, null_peer_id(1)))
    monkeypatch.setattr(text_source, "stdlib_corpus", library)
    monkeypatch.setattr(text_source, "fetch_corpus", fetched)
    monkeypatch.chdir(tmp_path)
    # A file that happens to be called as the manifest says is none of a stranger's business.
    (tmp_path / "mine.txt").write_bytes(TEXT[::-1])
    spec = spec_of("mine.txt" if why == "a file" else "stdlib")
    with Runtime() as runtime:
        away = entrance_of(spec, CORPUS.root, tmp_path, runtime)
        assert corpus_of_run(away, None, nobody, threading.Event()) is CORPUS


@pytest.mark.parametrize("kept", [False, True])
def test_a_sole_owner_whose_text_has_changed_hears_of_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Unless an earlier fetch left the run's text in its folder."""
    monkeypatch.setattr(text_source, "last_members", lambda *_: (ME,))
    spec, changed = spec_of("mine.txt"), cut_corpus(TEXT[::-1], max_chunk_bytes=16 * 1024)
    if kept:
        fetch_into(tmp_path / "text")
    with Runtime() as runtime:
        here = entrance_of(spec, CORPUS.root, tmp_path, runtime)
        if kept:
            assert corpus_of_run(here, changed, unasked, threading.Event()) == CORPUS
            return
        with pytest.raises(InputFileError, match=r"mine\.txt is not the one .*restore the file"):
            corpus_of_run(here, changed, unasked, threading.Event())


@pytest.mark.parametrize("known", ["another member", "no state"])
def test_an_owner_whose_text_has_changed_asks_the_members_it_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    def members(*_: object) -> tuple[PeerId, ...]:
        if known == "no state":
            raise InputFileError("holds no saved state")
        return (ME, null_peer_id(1))

    async def fetched(_: object, wanted: TextRequest) -> Corpus:
        assert wanted.patience_s > 60
        return CORPUS

    monkeypatch.setattr(text_source, "last_members", members)
    monkeypatch.setattr(text_source, "fetch_corpus", fetched)
    changed = cut_corpus(TEXT[::-1], max_chunk_bytes=16 * 1024)
    with Runtime() as runtime:
        here = entrance_of(spec_of("mine.txt"), CORPUS.root, tmp_path, runtime)
        assert corpus_of_run(here, changed, nobody, threading.Event()) is CORPUS


def test_an_interrupt_ends_the_wait_for_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()

    async def never(*_: object) -> Corpus:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    monkeypatch.setattr(text_source, "fetch_corpus", never)
    stop = threading.Event()
    stop.set()
    with Runtime() as runtime:
        away = entrance_of(spec_of("mine.txt"), CORPUS.root, tmp_path, runtime)
        with pytest.raises(KeyboardInterrupt):
            corpus_of_run(away, None, nobody, stop)
        assert cancelled.wait(10)
