"""A shared-seed vault over a real log: it follows records, aborts and branches, and comes back after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from runnel.dht.blobs import tree_root
from runnel.errors import InputFileError, RunMismatchError
from runnel.hashing import digest
from runnel.node.actions import Prepare, Reduce, RoundKey, WantHandover
from runnel.node.chain import Chain
from runnel.node.commitments import Commitment
from runnel.node.durable import DurableLog
from runnel.node.mailbox import HandedOver
from runnel.node.moves import Landing
from runnel.node.pins import pins
from runnel.node.records import FULL_PROGRESS, Record, RecordKind, Share
from runnel.node.seed_entries import EntryFile
from runnel.node.seed_vault import SeedVault
from runnel.node.storage_keys import HEAD
from runnel.optim.fixed_point import MasterWeights
from runnel.optim.fragments import ParameterShape
from runnel.optim.just_one_byte import pack_codes
from runnel.optim.seed_methods import LearningRate, OneByteMethod
from runnel.optim.seed_store import SeedStore
from runnel.types import Decision, Digest
from tests.support.crash_images import memory_folder
from tests.support.members import PEERS, following_record, genesis, name

ME, OTHER = PEERS[0], PEERS[1]
GENESIS = genesis(2)
SHAPES = (ParameterShape("a", (3, 5)), ParameterShape("b", (4097,)))
METHOD = OneByteMethod(2, LearningRate(0.01))
EVERY = 4


def store_of() -> SeedStore:
    rng = np.random.default_rng(3)
    weights = MasterWeights.from_arrays(
        {s.name: rng.standard_normal(s.shape) for s in SHAPES}, (3, 4)
    )
    return SeedStore(weights, METHOD, tree_root)


@dataclass
class Bench:
    """One peer with a vault, and a chain whose records this test decides."""

    folder: Path
    chain: Chain = field(default_factory=lambda: Chain(GENESIS, open_rounds=1))
    codes: Iterator[int] = field(default_factory=lambda: iter(range(-100, 100)))

    def __post_init__(self) -> None:
        self.log = DurableLog(self.folder)
        self.entries = EntryFile(self.folder / "entries")
        self.vault = SeedVault(store_of(), self.log, ME, self.entries, snapshot_every=EVERY)
        self.log.write({**self.vault.write_all([-1]), HEAD: GENESIS.hash})

    @property
    def root(self) -> Digest:
        return self.vault.store.root(0)

    def part(self, number: int) -> Digest:
        """The name of the part of the state whose turn it is."""
        size, turn = self.vault.store.sizes[0], number % EVERY
        part = size * turn // EVERY, size * (turn + 1) // EVERY
        return self.vault.store.root_of(self.vault.store.shared(0), part)

    def record(self, *, final: bool = False) -> Record:
        """The next round's record, prepared; this peer and another one contributed."""
        head = self.chain.head
        key = RoundKey(head.number + 1, head.hash)
        senders = tuple(
            Commitment(
                peer, key.number, key.base, digest(b""), (0.0,), (), 1, 1, 0.0, 0, (), (), ()
            )
            for peer in (ME, OTHER)
        )
        payloads = [pack_codes([next(self.codes), None]) for _ in senders]
        action = Reduce(key, 0, senders, (0, 1), OTHER, (0, 1), 0)
        result, size = self.vault.reduce(action, payloads)
        assert size < 40
        self.log.write({f"result/{result.root.hex()}": b""})
        shares = (Share(ME, name("mine"), 7), Share(OTHER, name("other"), 1))
        root = self.vault.prepare(Prepare(key, (result,), shares, final=final))
        empty = following_record(head, RecordKind.ROUND)
        fields = {f: getattr(empty, f) for f in empty.__dataclass_fields__}
        return Record(**{**fields, "shares": shares, "slices": (result,), "state_root": root})

    def follow(self, record: Record) -> list[bool]:
        """Adds a record to the chain and follows it; whether this peer was in each round."""
        self.chain.add(record, None)
        path = [*self.chain.lineage(record.parent), record.hash]
        fork = self.chain.fork_to(path)
        self.chain.follow(path)
        merges, updates = self.vault.follow(self.chain, fork, path)
        self.log.write({**updates, HEAD: record.hash})
        return [merge.included for merge in merges]

    def restarted(self) -> SeedVault:
        self.log.close()
        self.log = DurableLog(self.folder)
        vault = SeedVault(store_of(), self.log, ME, self.entries, snapshot_every=EVERY)
        self.log.write(vault.resume(self.log.load(), self.chain, lambda _: False))
        return vault


@pytest.fixture
def bench() -> Iterator[Bench]:
    with memory_folder() as folder:
        made = Bench(folder / "state")
        yield made
        made.log.close()


def test_rounds_are_followed_and_a_restart_has_the_same_bits(bench: Bench) -> None:
    for _ in range(7):
        assert bench.follow(bench.record()) == [True]
    assert bench.restarted().store.root(0) == bench.root


def test_pins_name_the_whole_state_and_the_rounds_between_a_part_of_it(bench: Bench) -> None:
    whole = []
    for number in range(4 * EVERY):
        aborts = number in {2, EVERY, EVERY + 1}
        record = following_record(bench.chain.head) if aborts else bench.record()
        bench.follow(record)
        if aborts:
            continue
        assert record.state_root in {bench.root, bench.part(number)}
        if record.state_root == bench.root:
            whole.append(number)
    assert whole == [EVERY + 2, 2 * EVERY, 3 * EVERY]
    assert pins(bench.chain, bench.chain.path, EVERY) == (3 * EVERY, 2 * EVERY)


def test_the_rounds_that_close_a_run_name_the_whole_state(bench: Bench) -> None:
    bench.follow(replace(bench.record(), progress=FULL_PROGRESS))
    assert bench.chain.head.state_root != bench.root
    bench.follow(bench.record(final=True))
    assert bench.chain.head.state_root == bench.root
    assert bench.restarted().store.root(0) == bench.root


def test_a_result_taken_twice_is_noticed_in_the_next_round(bench: Bench) -> None:
    with memory_folder() as folder:
        other = Bench(folder / "state")
        for _ in range(2):
            record = bench.record()
            assert other.record().state_root == record.state_root
            bench.follow(record)
            other.follow(record)
        update = other.vault.store.method.take(
            other.vault.store.state, {0: pack_codes([9, None])}, 0
        )
        other.vault.store.weights.apply(update[0])
        assert other.record().state_root != bench.record().state_root
        other.log.close()


def test_a_single_wrong_value_is_noticed_at_the_next_pin_at_the_latest(bench: Bench) -> None:
    with memory_folder() as folder:
        other = Bench(folder / "state")
        other.vault.store.weights.tensors[1].values[4096] ^= 1
        agreed = 0
        while (
            agreed <= EVERY and other.record().state_root == (record := bench.record()).state_root
        ):
            bench.follow(record)
            other.follow(record)
            agreed += 1
        assert 1 <= agreed <= EVERY
        other.log.close()


def test_an_abort_takes_back_what_was_tried(bench: Bench) -> None:
    bench.follow(bench.record())
    before = bench.root
    bench.record()  # tried, and not decided
    assert bench.follow(following_record(bench.chain.head, RecordKind.ABORT)) == []
    assert bench.root == before
    assert bench.restarted().store.root(0) == before


def test_a_branch_that_is_given_up_goes_back_to_where_it_began(bench: Bench) -> None:
    for _ in range(5):
        bench.follow(bench.record())
    meeting, root = bench.chain.head, bench.root
    for _ in range(3):
        bench.follow(bench.record())
    assert bench.root != root
    other = following_record(meeting, RecordKind.ABORT)
    assert bench.follow(other) == []
    assert bench.root == root
    bench.follow(bench.record())
    assert bench.restarted().store.root(0) == bench.root


def test_a_record_of_other_weights_ends_the_peer(bench: Bench) -> None:
    record = bench.record()
    fields = {f: getattr(record, f) for f in record.__dataclass_fields__}
    wrong = Record(**{**fields, "state_root": name("another")})
    with pytest.raises(RunMismatchError, match="after round 0 our state is"):
        bench.follow(wrong)


def test_a_state_further_on_takes_the_place_of_results(bench: Bench) -> None:
    away = bench.vault.store.root(0)
    with memory_folder() as folder:
        behind = Bench(folder / "state", chain=bench.chain)
        records = []
        for _ in range(6):
            records.append(bench.record())
            bench.follow(records[-1])
        path = list(bench.chain.path)
        state = bench.vault.store.shared(0)
        copies = (state[0].copy(), state[1].copy())
        behind.vault.land(Landing(path[-1], len(path) - 2, {0: copies}))
        behind.chain = Chain(GENESIS, open_rounds=1)
        for record in records:
            behind.chain.add(record, None)
        fork = behind.chain.fork_to(path)
        behind.chain.follow(path)
        merges, updates = behind.vault.follow(behind.chain, fork, path)
        behind.log.write({**updates, HEAD: path[-1]})
        assert behind.root == bench.root != away
        assert [(merge.number, merge.included) for merge in merges] == [(5, True)]
        assert behind.restarted().store.root(0) == bench.root
        behind.log.close()


def test_several_records_are_followed_in_one_step(bench: Bench) -> None:
    with memory_folder() as folder:
        behind = Bench(folder / "state")
        records = []
        for number in range(6):
            record = (
                following_record(bench.chain.head, RecordKind.ABORT)
                if number == 2
                else bench.record()
            )
            bench.follow(record)
            records.append(record)
        for record in records:
            behind.chain.add(record, None)
            for piece in record.slices:
                entry = bytes(bench.vault.results.get(piece.root) or b"")
                behind.vault.results.keep(piece.root, entry)
                behind.log.write({f"result/{piece.root.hex()}": b""})
        path = list(bench.chain.path)
        fork = behind.chain.fork_to(path)
        behind.chain.follow(path)
        merges, updates = behind.vault.follow(behind.chain, fork, path)
        behind.log.write({**updates, HEAD: path[-1]})
        assert [merge.number for merge in merges] == [0, 1, 3, 4, 5]
        assert all(merge.included for merge in merges)
        assert behind.root == bench.root == behind.restarted().store.root(0)
        wanted = {r.number: r.slices[0].root for r in bench.chain.walk() if r.slices}
        assert behind.entries.all_of(wanted) == bench.entries.all_of(wanted)
        behind.log.close()


def test_a_contribution_of_older_weights_is_not_sent(bench: Bench) -> None:
    want = WantHandover(RoundKey(0, GENESIS.hash), 0, 1, urgent=False)
    payload = np.frombuffer(pack_codes([1, 2]), np.uint8)
    mark = bench.vault.store.mark
    given = bench.vault.contribute(HandedOver(want, payload, mark, 3, 1, 0.5))
    assert given is not None
    assert given.carried == payload.tobytes()
    assert given.payload_root == digest(given.carried)
    bench.follow(bench.record())
    assert bench.vault.contribute(HandedOver(want, payload, mark, 3, 1, 0.5)) is None


def test_a_contribution_of_another_method_is_withheld(bench: Bench) -> None:
    want = WantHandover(RoundKey(0, GENESIS.hash), 0, 1, urgent=False)
    wrong = HandedOver(want, np.zeros(5, np.uint8), bench.vault.store.mark, 3, 1, 0.5)
    with pytest.raises(ValueError, match="5 bytes for 2 probes"):
        bench.vault.contribute(wrong)


def test_slices_that_somebody_sends_are_refused(bench: Bench) -> None:
    assert bench.vault.judge(b"x", 1, 0.0).decision is Decision.REJECT


def test_a_result_that_the_disk_lost_is_named_at_the_restart(bench: Bench) -> None:
    bench.follow(bench.record())  # in full, as its number is one of a pin
    record = bench.record()
    bench.follow(record)
    bench.log.write({f"result/{record.slices[0].root.hex()}": None})
    with pytest.raises(InputFileError, match="the result of round 1 is not on the disk"):
        bench.restarted()


# -- the history


def test_the_entries_are_those_of_the_chain_whatever_was_given_up(bench: Bench) -> None:
    for _ in range(3):
        bench.follow(bench.record())
    meeting = bench.chain.head
    for _ in range(2):
        bench.follow(bench.record())
    bench.follow(following_record(meeting, RecordKind.ABORT))
    bench.follow(bench.record())
    records = [bench.chain.record(name) for name in bench.chain.path[1:]]
    wanted = {record.number: record.slices[0].root for record in records if record.slices}
    assert [digest(entry) for entry in bench.entries.all_of(wanted)] == list(wanted.values())
    assert set(bench.entries.read(wanted)) == set(wanted)


@pytest.mark.parametrize("lost_bytes", [1, 30, 200, 10_000])
def test_what_a_crash_cut_off_is_written_again(bench: Bench, lost_bytes: int) -> None:
    for _ in range(5):
        bench.follow(bench.record())
    path = bench.folder / "entries"
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost_bytes] if lost_bytes < len(whole) else b"")
    bench.restarted()
    assert path.read_bytes() == whole


def test_entries_of_rounds_that_were_not_written_to_the_head_are_taken_out(bench: Bench) -> None:
    for _ in range(3):
        bench.follow(bench.record())
    whole = (bench.folder / "entries").read_bytes()
    bench.entries.append(3, b"of a round that no chain has")
    bench.restarted()
    assert (bench.folder / "entries").read_bytes() == whole


def test_a_disk_that_refuses_ends_the_history_and_not_the_peer(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.folder / "entries").mkdir()
    for _ in range(2):
        bench.follow(bench.record())
    assert len([line for line in caplog.messages if "cannot be written" in line]) == 1
    assert bench.restarted().store.root(0) == bench.root
    with pytest.raises(InputFileError, match="export the log from another peer"):
        bench.entries.all_of({0: digest(b"")})
