"""A latecomer's history: old entries come from members in chunks, each proven by its record, and nobody is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from runnel.dht.memory import Link, MemoryNetwork, MemoryTransport
from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, PeerError, StorageError
from runnel.hashing import digest
from runnel.node import entry_chunks, seed_entries
from runnel.node.entry_chunks import HistoryFetch, HistorySource, entries_answer, sound_entries
from runnel.node.records import RecordKind
from runnel.node.run_service import ENTRIES, RunService
from runnel.node.seed_entries import ENTRIES_NAME, EntryFile
from runnel.types import Digest
from tests.support.crash_images import memory_folder
from tests.support.members import PEERS, RUN, at_once, following_record
from tests.unit.node.test_seed_vault import Bench

ROUNDS = 21
GUEST, MEMBERS = PEERS[7], PEERS[:3]
Answer = Callable[[list[Digest]], bytes]


@pytest.fixture(scope="module")
def member() -> Iterator[Bench]:
    """A peer that was there from the first round; rounds 5 and 13 were aborted."""
    with memory_folder() as folder:
        made = Bench(folder / "state")
        for number in range(ROUNDS):
            if number in (5, 13):
                made.follow(following_record(made.chain.head, RecordKind.ABORT))
            else:
                made.follow(made.record())
        yield made
        made.log.close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_chunks, "CHUNK_ROUNDS", 8)
    monkeypatch.setattr(entry_chunks, "CHUNK_BYTES", 100)
    monkeypatch.setattr(seed_entries, "_BLOCK_ROUNDS", 4)


async def here(job: Callable[..., Any], *args: Any) -> Any:
    return job(*args)


def wanted_of(member: Bench) -> dict[int, Digest]:
    return {r.number: r.slices[0].root for r in member.chain.walk() if r.kind is RecordKind.ROUND}


def latecomer(folder: Path, member: Bench, first: int) -> EntryFile:
    """The file of a peer that follows since round `first`."""
    entries, wanted = EntryFile(folder / ENTRIES_NAME), wanted_of(member)
    for number, entry in member.entries.read(wanted).items():
        if number >= first:
            entries.append(number, entry)
    return entries


def fetched(
    member: Bench, entries: EntryFile, answers: Sequence[Answer], *, within_s: float = 60
) -> None:
    """Lets a latecomer fetch until it has all, in virtual time."""
    wanted = wanted_of(member)

    async def main() -> None:
        network = MemoryNetwork(1, default_link=Link(latency_s=0.001))
        guest = MemoryTransport(network, GUEST)
        transports = [guest]
        for peer, answer in zip(MEMBERS, answers, strict=False):
            transports.append(MemoryTransport(network, peer))
            await RunService(transports[-1], RUN, {ENTRIES: answer}, job=at_once).serve()
        source = HistorySource(guest, RUN, lambda: MEMBERS[: len(answers)], here)
        task = asyncio.get_running_loop().create_task(
            HistoryFetch(source, member.chain, entries).run(), name="history"
        )
        async with asyncio.timeout(within_s):
            while len(entries.read(wanted)) < len(wanted):
                await asyncio.sleep(0.1)  # of the virtual clock
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for transport in transports:
            await transport.aclose()

    run_virtual(main)


def honest(member: Bench) -> Answer:
    return lambda names: entries_answer(member.chain, member.entries, names)


@pytest.mark.parametrize("first", [1, 6, 13, ROUNDS])
def test_a_latecomer_gets_what_was_before_its_time(
    member: Bench, tmp_path: Path, first: int
) -> None:
    entries = latecomer(tmp_path, member, first)
    with pytest.raises(InputFileError, match="history lacks"):
        entries.all_of(wanted_of(member))
    fetched(member, entries, [honest(member)])
    wanted = wanted_of(member)
    assert [digest(entry) for entry in entries.all_of(wanted)] == list(wanted.values())
    again = EntryFile(tmp_path / ENTRIES_NAME)
    assert again.all_of(wanted) == member.entries.all_of(wanted)


def test_a_gap_in_the_middle_is_filled(member: Bench, tmp_path: Path) -> None:
    entries, wanted = EntryFile(tmp_path / ENTRIES_NAME), wanted_of(member)
    for number, entry in member.entries.read(wanted).items():
        if number < 3 or number > 9:
            entries.append(number, entry)
    fetched(member, entries, [honest(member)])
    assert entries.all_of(wanted) == member.entries.all_of(wanted)


def test_who_tells_another_entry_is_named_and_the_next_one_asked(
    member: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lying(names: list[Digest]) -> bytes:
        rows: Any = unpack(honest(member)(names), max_bytes=1 << 20)
        return pack([[number, entry[:-1] + b"x"] for number, entry in rows])

    entries = latecomer(tmp_path, member, 9)
    fetched(member, entries, [lying, lambda _: pack([]), honest(member)])
    assert entries.all_of(wanted_of(member)) == member.entries.all_of(wanted_of(member))
    told = [line for line in caplog.messages if "are not taken" in line]
    assert len(told) == 1
    assert "another entry of round 0 than was decided" in told[0]


def test_a_latecomer_tells_what_it_has(member: Bench, tmp_path: Path) -> None:
    part, entries = latecomer(tmp_path / "a", member, 4), latecomer(tmp_path / "b", member, 9)
    answers = [lambda names: entries_answer(member.chain, part, names), honest(member)]
    fetched(member, entries, answers)
    assert entries.all_of(wanted_of(member)) == member.entries.all_of(wanted_of(member))


def test_an_answer_is_bounded_and_ends_at_a_gap(member: Bench, tmp_path: Path) -> None:
    first = member.chain.path[1]

    def told(entries: EntryFile, name: Digest) -> list[int]:
        rows: Any = unpack(entries_answer(member.chain, entries, [name]), max_bytes=1 << 20)
        assert sum(len(entry) for _, entry in rows) < 140
        return [number for number, _ in rows]

    assert told(member.entries, first) == [0, 1, 2, 3, 4, 6]
    assert told(latecomer(tmp_path, member, 3), first) == []
    assert told(member.entries, digest(b"no record")) == []
    assert told(member.entries, member.chain.path[0]) == []
    assert entries_answer(member.chain, member.entries, []) == pack([])


@pytest.mark.parametrize(
    "answer", [b"", pack([1]), pack([[1]]), pack([["x", b""]]), pack([[0, 1]]), pack(7)]
)
def test_an_answer_that_is_none_is_refused(answer: bytes) -> None:
    wanted: Mapping[int, Digest] = {0: digest(b"entry")}
    with pytest.raises(PeerError):
        sound_entries(answer, wanted)
    assert sound_entries(pack([[7, b"other"], [0, b"entry"]]), wanted) == [(0, b"entry")]


def test_an_entry_of_another_branch_is_not_taken_for_the_rounds(
    member: Bench, tmp_path: Path
) -> None:
    entries = latecomer(tmp_path, member, 16)
    entries.add_older([(9, b"of a branch")])
    for number in (14, 15):
        entries.append(number, b"of a branch, too")
    fetched(member, entries, [honest(member)])
    assert entries.all_of(wanted_of(member)) == member.entries.all_of(wanted_of(member))


def test_a_disk_that_refuses_ends_the_fetch_and_not_the_peer(
    member: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = latecomer(tmp_path, member, 9)
    (tmp_path / (ENTRIES_NAME + seed_entries.OLDER_SUFFIX)).mkdir()
    with pytest.raises((TimeoutError, InputFileError)):
        fetched(member, entries, [honest(member)], within_s=1)
    assert any("is not completed here" in line for line in caplog.messages)


@pytest.mark.parametrize("rest", [b"", b"\0" * 40, b"another frame that was not finished"])
def test_what_a_full_disk_or_a_crash_cut_off_is_not_in_the_way(
    member: Bench, tmp_path: Path, rest: bytes
) -> None:
    entries, wanted = latecomer(tmp_path, member, ROUNDS), wanted_of(member)
    held = sorted(member.entries.read(wanted).items())
    entries.add_older(held[:9])
    older = tmp_path / (ENTRIES_NAME + seed_entries.OLDER_SUFFIX)
    older.write_bytes(older.read_bytes()[:-7] + rest)
    again = EntryFile(tmp_path / ENTRIES_NAME)
    again.add_older(held[8:])
    assert again.all_of(wanted) == [entry for _, entry in held]
    assert EntryFile(tmp_path / ENTRIES_NAME).all_of(wanted) == [entry for _, entry in held]


def test_a_history_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_entries, "MAX_OLDER_BYTES", 100)
    entries = EntryFile(tmp_path / ENTRIES_NAME)
    entries.add_older([(0, b"x" * 60)])
    with pytest.raises(StorageError, match="has over 100 bytes"):
        entries.add_older([(1, b"x" * 60)])
