"""A state out of the log: the same bits as the swarm's, or the state is fetched as before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from runnel.dht.memory import Link, MemoryNetwork, MemoryTransport
from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack, unpack
from runnel.node import entry_chunks, rebuilding, seed_entries
from runnel.node.joining import Source, first_root
from runnel.node.leaping import Leaper
from runnel.node.pins import pins
from runnel.node.rebuilding import Rebuilder, RebuildParts, rebuild_of_newcomer
from runnel.node.records import Record, RecordKind
from runnel.node.run_service import ENTRIES, RunService
from runnel.node.saved_states import State
from runnel.node.state_download import Fetched
from runnel.types import Digest, short
from tests.support.crash_images import memory_folder
from tests.support.members import RUN, at_once, following_record
from tests.support.states import state_of
from tests.unit.node.test_entry_chunks import GUEST, MEMBERS, Answer, here, honest
from tests.unit.node.test_seed_vault import EVERY, GENESIS, Bench

ROUNDS, ABORTED = 5 * EVERY + 2, {2, EVERY}
Found = tuple[Fetched, State] | None


class Here:
    """Runs all jobs where they are asked for."""

    async def load(self, job: Callable[..., Any], *args: Any) -> Any:
        return job(*args)

    disk = load


@pytest.fixture(scope="module")
def member() -> Iterator[Bench]:
    with memory_folder() as folder:
        made = Bench(folder / "state")
        for number in range(ROUNDS):
            aborted = following_record(made.chain.head, RecordKind.ABORT)
            made.follow(aborted if number in ABORTED else made.record())
        yield made
        made.log.close()


@pytest.fixture
def guest(member: Bench) -> Iterator[Bench]:
    """A peer at genesis that knows all records."""
    with memory_folder() as folder:
        made = Bench(folder / "state")
        for record in list(member.chain.walk())[1:]:
            made.chain.add(record, None)
        yield made
        made.log.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "_READ_AT_ONCE", 7)
    monkeypatch.setattr(rebuilding, "_LEAST_PIECE", 3)
    monkeypatch.setattr(rebuilding, "_PIECE_S", 0.0)


def lying(member: Bench) -> Answer:
    def answer(names: list[Digest]) -> bytes:
        rows: Any = unpack(honest(member)(names), max_bytes=1 << 20)
        return pack([[number, entry[:-1] + b"x"] for number, entry in rows])

    return answer


def pinned(member: Bench) -> Sequence[Digest]:
    path = member.chain.path
    return path[: pins(member.chain, path, EVERY)[0] + 2]


def parts_of(guest: Bench, catch_up: str = "auto") -> RebuildParts:
    """Of a member that has gone as far as its chain."""

    async def base(path: Sequence[Digest]) -> State:
        return guest.vault.states.read(guest.chain, path, 0)

    return RebuildParts(guest.chain, guest.vault, guest.chain.common, base, here, here, catch_up)


async def at_last(answer: Callable[[list[Digest]], bytes], names: list[Digest]) -> bytes:
    """Shortly before nobody waits any more."""
    await asyncio.sleep(9.5)
    return answer(names)


async def never(_: Callable[[list[Digest]], bytes], __: list[Digest]) -> bytes:
    await asyncio.sleep(1e6)
    raise AssertionError("nobody waits so long")


def rebuilt(
    guest: Bench,
    answers: Sequence[Answer],
    path: Sequence[Digest],
    parts: RebuildParts,
    *,
    first: Any = at_once,
    within_s: float = 1e6,
) -> Found:
    """What is made of the answers; the `first` member gives its own in a way of its own."""

    async def main() -> Found:
        network = MemoryNetwork(1, default_link=Link(latency_s=0.001))
        transport = MemoryTransport(network, GUEST)
        transports = [transport]
        for peer, answer in zip(MEMBERS, answers, strict=False):
            transports.append(MemoryTransport(network, peer))
            job = first if peer == MEMBERS[0] else at_once
            await RunService(transports[-1], RUN, {ENTRIES: answer}, job=job).serve()
        source = Source(transport, MEMBERS[: len(answers)], RUN)
        async with asyncio.timeout(within_s):
            found = await Rebuilder(parts).rebuild(source, path)
        for one in transports:
            await one.aclose()
        return found

    return run_virtual(main)


def root_at(member: Bench, path: Sequence[Digest]) -> Digest:
    return member.chain.record(path[-1]).state_root


def test_base_and_log_are_the_state_of_a_pin(member: Bench, guest: Bench) -> None:
    path = pinned(member)
    found = rebuilt(guest, [lying(member), honest(member)], path, parts_of(guest))
    assert found is not None
    fetched, state = found
    assert guest.vault.store.root_of(state) == root_at(member, path)
    assert guest.vault.store.root(0) != root_at(member, path), "the guest's own stays as it was"
    assert fetched.number == len(path) - 2
    assert fetched.log_rounds == len(path) - 1 - len(ABORTED)
    assert fetched.liars == (short(MEMBERS[0]),)
    assert list(fetched.bytes_by_donor) == [short(MEMBERS[1])]
    said = fetched.event().diary() or ""
    assert f"from the log of {fetched.log_rounds} rounds" in said
    assert "0 B" not in said


def test_who_was_away_goes_on_from_its_own_state(member: Bench, guest: Bench) -> None:
    for record in list(member.chain.walk())[1 : EVERY + 4]:
        take(member, guest, record)
    path = pinned(member)
    found = rebuilt(guest, [honest(member)], path, parts_of(guest))
    assert found is not None
    assert guest.vault.store.root_of(found[1]) == root_at(member, path)
    assert found[0].log_rounds == len(path) - len(guest.chain.path)


def take(member: Bench, guest: Bench, record: Record) -> None:
    """Follows a record with the member's result."""
    for piece in record.slices:
        guest.vault.results.keep(
            piece.root, bytes(member.entries.read({record.number: piece.root})[record.number])
        )
    guest.follow(record)


def test_what_has_come_once_is_not_asked_for_again(member: Bench, guest: Bench) -> None:
    path, parts = pinned(member), parts_of(guest)
    assert rebuilt(guest, [honest(member)], path, parts) is not None
    found = rebuilt(guest, [], path, parts)
    assert found is not None
    assert (found[0].size_bytes, found[0].bytes_by_donor) == (0, {})
    assert "all of it was here" in (found[0].event().diary() or "")


def test_without_entries_or_where_it_takes_longer_the_state_is_fetched(
    member: Bench, guest: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pinned(member)
    assert rebuilt(guest, [lambda _: pack([]), lying(member)], path, parts_of(guest)) is None
    assert rebuilt(guest, [honest(member)], path, parts_of(guest, "state")) is None
    monkeypatch.setattr(rebuilding, "PASS_S", 1.0)
    assert rebuilt(guest, [honest(member)], path, parts_of(guest)) is None
    assert rebuilt(guest, [honest(member)], path, parts_of(guest, "log")) is not None


def test_a_log_that_leads_elsewhere_is_not_taken(
    member: Bench, guest: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def other(_: Sequence[Digest]) -> State:
        weights, rest = guest.vault.store.shared(0)
        changed = weights.copy()
        changed[:1] = 1.0
        return changed, rest

    parts = RebuildParts(guest.chain, guest.vault, guest.chain.common, other, here, here, "auto")
    assert rebuilt(guest, [honest(member)], pinned(member), parts) is None
    assert any("leads to another state" in line for line in caplog.messages)


@pytest.mark.parametrize("has_base", [True, False])
def test_a_newcomer_needs_the_values_that_the_run_began_with(
    member: Bench, guest: Bench, *, has_base: bool
) -> None:
    roots = guest.vault.state_roots() if has_base else [Digest(bytes(32))]
    genesis = Record(
        **{
            field: getattr(GENESIS, field)
            for field in GENESIS.__dataclass_fields__
            if field != "state_root"
        },
        state_root=first_root(roots),
    )
    guest.chain.follow(member.chain.path[:8])  # whose records are on the disk already
    runtime: Any = Here()
    rebuild: Any = rebuild_of_newcomer(guest.vault, guest.chain, genesis, runtime, "auto")

    async def main() -> Found:
        network = MemoryNetwork(1, default_link=Link(latency_s=0.001))
        transport, donor = MemoryTransport(network, GUEST), MemoryTransport(network, MEMBERS[0])
        await RunService(donor, RUN, {ENTRIES: honest(member)}, job=at_once).serve()
        source = Source(transport, MEMBERS[:1], RUN)
        made: Found = await rebuild(source, path)
        for one in (transport, donor):
            await one.aclose()
        return made

    path = pinned(member)
    found = run_virtual(main)
    assert (found is not None) == has_base
    if found is not None:
        guest.vault.store.load(0, *found[1])
        assert guest.vault.store.root(0) == root_at(member, path)


def test_a_run_that_has_no_pin_yet_begins_with_the_base(guest: Bench) -> None:
    found = rebuilt(guest, [], guest.chain.path, parts_of(guest))
    assert found is not None
    assert found[0].number == -1
    assert "first state was here" in (found[0].event().diary() or "")


def test_a_leap_takes_what_was_rebuilt(member: Bench) -> None:
    asked, made = list[Sequence[Digest]](), object()

    async def rebuild(_: Source, path: Sequence[Digest]) -> Any:
        asked.append(path)
        return made, "the state"

    leaper, path = Leaper(state_of(), every=EVERY, rebuild=rebuild), pinned(member)

    async def main() -> Any:
        source: Any = None
        return await leaper.fetch(source, path, [(1, 1)])

    assert run_virtual(main) == (made, {0: "the state"})
    assert asked == [path]


def trickling(member: Bench) -> Answer:
    def answer(names: list[Digest]) -> bytes:
        rows: Any = unpack(honest(member)(names), max_bytes=1 << 20)
        return pack(rows[:1])

    return answer


@pytest.mark.parametrize("slow", [at_last, never])
def test_who_is_slow_or_silent_is_asked_last_from_then_on(
    member: Bench, guest: Bench, monkeypatch: pytest.MonkeyPatch, slow: Any
) -> None:
    monkeypatch.setattr(entry_chunks, "CHUNK_ROUNDS", 4)
    answers = [trickling(member), honest(member)]
    found = rebuilt(guest, answers, pinned(member), parts_of(guest), first=slow, within_s=15.0)
    assert found is not None
    assert guest.vault.store.root_of(found[1]) == root_at(member, pinned(member))


def test_a_member_that_gives_one_round_at_a_time_costs_no_more_than_the_time_for_it(
    member: Bench, guest: Bench
) -> None:
    args = ([trickling(member)], pinned(member), parts_of(guest))
    assert rebuilt(guest, *args, first=at_last, within_s=rebuilding._GRACE_S + 5) is None


def test_a_path_that_is_forgotten_meanwhile_is_no_matter(member: Bench, guest: Bench) -> None:
    def forgetful(names: list[Digest]) -> bytes:
        for name in list(guest.chain.path[:0]) or pinned(member)[2:]:
            guest.chain._records.pop(name, None)
        return honest(member)(names)

    found = rebuilt(guest, [forgetful], pinned(member), parts_of(guest))
    assert found is not None


def test_a_disk_that_refuses_leads_to_the_state(
    member: Bench, guest: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed_entries, "MAX_OLDER_BYTES", 100)
    assert rebuilt(guest, [honest(member)], pinned(member), parts_of(guest)) is None


def test_whoever_asks_for_the_log_hears_why_it_is_not_taken(
    member: Bench, guest: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def none(_: Sequence[Digest]) -> None:
        return None

    parts = replace(parts_of(guest, "log"), base=none)
    assert rebuilt(guest, [honest(member)], pinned(member), parts) is None
    (told,) = [r for r in caplog.records if "is fetched, not rebuilt" in r.message]
    assert told.levelno == logging.WARNING
    assert "--base" in told.message


def test_a_machine_that_is_far_slower_than_others_fetches_the_state() -> None:
    rebuilding._require_pace(took_s=1.1, expected_s=0.2)
    with pytest.raises(TimeoutError, match=r"a pass of 0\.2 s took 7 s here"):
        rebuilding._require_pace(took_s=7.0, expected_s=0.2)
