"""Old records: out of memory, on the disk, and as good as those at hand for whoever asks."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.identity import NullSigner
from runnel.errors import InputFileError
from runnel.node import following, witness
from runnel.node.actions import Recall, Send
from runnel.node.archive import Archive, block_blob
from runnel.node.certificates import Certificate
from runnel.node.chain import Chain
from runnel.node.durable import DurableLog
from runnel.node.messages import Records, WantRecords
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record
from runnel.node.shelving import shelve, shelve_told, shelved_updates
from runnel.node.storage_keys import HEAD, record_updates, restore
from runnel.types import Digest
from tests.support.archived import BLOCK, KEPT, Follower, aborts, names_of
from tests.support.crash_images import check_every_crash, memory_folder
from tests.support.file_layer import FileLayer
from tests.support.members import PEERS, certificate, following_record
from tests.support.states import GENESIS, ME, OTHER, THIRD, branch_after, settings_of, told

LONG = aborts(GENESIS, 5 * KEPT)


@contextmanager
def follower(**options: int) -> Iterator[Follower]:
    with memory_folder() as folder:
        found = Follower(folder / "state", **options)
        yield found
        found.close()


# -- memory


def kept_in_memory(rounds: int) -> tuple[int, int]:
    """Bytes and records that a peer holds after so many rounds."""
    with follower() as peer:
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(rounds // 20):
                peer.hear(aborts(peer.chain.head, 20))
            gc.collect()
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peer.chain.number == rounds - 1
        return size, sum(type(thing) is Record for thing in gc.get_objects())


def test_a_run_of_any_length_takes_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an old round its name stays, 32 bytes; that of two members is some thousands of bytes in whole."""
    monkeypatch.setattr(witness, "_MAX_VERIFIED", 100)  # full before the first look
    short, long = 200, 500
    size, records = kept_in_memory(short)
    later_size, later_records = kept_in_memory(long)
    assert abs(later_records - records) <= BLOCK
    assert later_size - size < 80 * (long - short) + 20_000


# -- a chain with an archive is a chain

Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["go on", "part", "fold"]), st.integers(1, 12)), max_size=8
)


class Twins:
    """The same chain twice, one of which archives what it can."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.keys: dict[str, bytes] = {HEAD: GENESIS.hash}
        self.whole = Chain(GENESIS, open_rounds=2)
        archive = Archive(self.blobs.__getitem__, block=3)
        self.folded = Chain(GENESIS, open_rounds=2, archive=archive)
        self._made = 0

    def take(self, step: Step) -> None:
        what, count = step
        if what == "fold":
            self._fold(count)
        else:
            self._part(0 if what == "go on" else min(count, len(self.whole.path) - 1), count)

    def _fold(self, keep: int) -> None:
        while folded := self.folded.fold(keep):
            self.blobs[folded.block.blob] = folded.block.content()
            self.folded.archive.written(folded.block)

    def _part(self, back: int, count: int) -> None:
        """Gives up `back` records and goes on with `count` others."""
        parent = self.whole.record(self.whole.path[-1 - back])
        new = list[Digest]()
        for _ in range(count):
            self._made += 1
            record = following_record(parent, nonce=self._made.to_bytes(4, "big"))
            proof = certificate(record, PEERS[:1], attempt=self._made % 3)
            for chain in (self.whole, self.folded):
                chain.add(record, proof)
            new.append(record.hash)
            parent = record
        for chain in (self.whole, self.folded):
            chain.follow(chain.path[: len(chain.path) - back].then(*new))  # type: ignore[attr-defined]

    def check(self) -> None:
        whole, folded = self.whole, self.folded
        assert list(folded.path) == list(whole.path) == names_of(folded)
        assert folded.head == whole.head
        for index, name in enumerate(whole.path):
            assert folded.follows(name)
            assert folded.follows(name, index - 1)
            assert folded.record(name) == whole.record(name) == folded.at(folded.path, index)
            assert folded.certificate(name) == whole.certificate(name)
            assert list(folded.lineage(name)) == list(whole.lineage(name))
            assert folded.base_of(index) == whole.base_of(index)
            assert list(folded.after([name], 4)) == list(whole.after([name], 4))
        assert folded.locator() == whole.locator()


@settings(max_examples=60, deadline=None)
@given(steps)
def test_an_archived_chain_answers_as_one_that_keeps_everything(course: list[Step]) -> None:
    twins = Twins()
    for step in course:
        twins.take(step)
        twins.check()


@settings(max_examples=30, deadline=None)
@given(steps, st.integers(0, 30), st.integers(0, 3))
def test_forks_are_judged_as_if_everything_were_at_hand(
    course: list[Step], back: int, attempt: int
) -> None:
    twins = Twins()
    for step in (*course, ("go on", 12), ("fold", 2)):
        twins.take(step)
    path = twins.whole.path
    place = max(len(path) - 1 - back, 0)
    other = following_record(twins.whole.record(path[place]), nonce=b"other")
    proof = certificate(other, PEERS[:1], attempt=attempt)
    for chain in (twins.whole, twins.folded):
        chain.add(other, proof)
    whole, folded = (chain.lineage(other.hash) for chain in (twins.whole, twins.folded))
    assert list(whole) == list(folded)
    assert twins.whole.prefers(whole) == twins.folded.prefers(folded)
    assert twins.whole.fork_to(whole) == twins.folded.fork_to(folded)
    twins.whole.follow(whole)
    twins.folded.follow(folded)
    twins.check()


def test_what_was_given_up_long_ago_goes_and_what_is_wanted_stays() -> None:
    twins = Twins()
    twins.take(("go on", 10))
    lost = twins.whole.path[-2:]
    twins.take(("part", 2))
    assert all(twins.folded.is_at_hand(name) for name in lost)
    twins.take(("go on", 30))
    wanted = twins.folded.lineage(lost[-1])
    while folded := twins.folded.fold(3, wanted):
        assert not folded.dropped
    assert all(twins.folded.is_at_hand(name) for name in lost)
    twins.take(("go on", 3))
    dropped = list[Digest]()
    while folded := twins.folded.fold(3):
        dropped += folded.dropped
    assert dropped == list(lost)
    assert not any(name in twins.folded for name in lost)


# -- for others


def test_old_records_are_read_beside_the_rest_and_told_to_the_last() -> None:
    with follower() as peer:
        peer.hear(LONG)
        heard, recalled = list[Record](), 0
        asked = WantRecords((GENESIS.hash,))
        while answers := following.on_want_records(peer.protocol.state, OTHER, asked, 1.0):
            (answer,) = answers
            if isinstance(answer, Recall):
                assert answer.to == OTHER
                records = following.records_after(peer.chain, answer.locator)
                recalled += len(records.records)
            else:
                assert isinstance(answer, Send)
                assert isinstance(answer.message, Records)
                records = answer.message
            assert all(proof is not None for proof in records.certificates)
            heard += records.records
            asked = WantRecords((heard[-1].hash, GENESIS.hash))
        assert heard == LONG
        assert recalled >= len(peer.chain.archive) - 1 > len(LONG) - KEPT - BLOCK


def test_a_peer_that_is_far_behind_is_known_to_be_on_our_path() -> None:
    with follower() as peer:
        peer.hear(LONG)
        old = LONG[3]
        assert not peer.chain.is_at_hand(old.hash)
        assert peer.chain.knows(old)
        assert peer.chain.follows(old.hash, old.number)
        assert not peer.chain.knows(following_record(LONG[2], nonce=b"another"))


def test_a_better_proof_of_an_archived_record_changes_nothing() -> None:
    with follower() as peer:
        peer.hear(LONG)
        peer.hear(LONG[:10], attempt=4)
        assert not peer.chain.is_at_hand(LONG[3].hash)
        proof = peer.chain.certificate(LONG[3].hash)
        assert proof is not None
        assert proof.attempt == 0


# -- on the disk


def test_a_restart_reads_no_old_record(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_folder() as folder:
        peer = Follower(folder)
        peer.hear(LONG)
        stored = peer.log.load()
        peer.close()
        kinds = [key.partition("/")[0] for key in stored]
        assert kinds.count("record") < KEPT + BLOCK
        read, decoded = Record.from_wire, list[int]()

        def noted(fields: list[int]) -> Record:
            decoded.append(fields[0])
            return read(fields)

        monkeypatch.setattr(Record, "from_wire", staticmethod(noted))
        again = Follower(folder)
        assert again.chain.head == LONG[-1]
        assert len(decoded) < KEPT + BLOCK
        assert min(decoded) > len(LONG) - KEPT - BLOCK - 2
        assert names_of(again.chain) == [GENESIS.hash, *(record.hash for record in LONG)]
        again.close()


@pytest.mark.parametrize("length", [2, KEPT + 3 * BLOCK])
@pytest.mark.parametrize("place", [BLOCK + 5, 2 * BLOCK - 2, 2 * BLOCK - 1])
def test_a_path_that_parts_in_the_archive_is_found_again_after_a_restart(
    place: int, length: int
) -> None:
    with memory_folder() as folder:
        peer = Follower(folder)
        peer.hear(LONG)
        shared = peer.chain.path[: place + 2]
        parted = [following_record(LONG[place], view=PEERS[:2])]
        parted += aborts(parted[0], length - 1)
        for record in parted:
            peer.chain.add(record, certificate(record, PEERS[:2], attempt=3))
        peer.protocol.state.pursuit.target = peer.chain.lineage(parted[-1].hash)
        peer.protocol.state.pursuit.landing = peer.protocol.state.target
        peer.carry(peer.protocol.tick(2.0))
        expected = [*shared, *(record.hash for record in parted)]
        assert names_of(peer.chain) == expected
        assert (
            sum(key.startswith("archive/") for key in peer.log.load()) == peer.chain.archive.blocks
        )
        peer.close()
        again = Follower(folder)
        assert names_of(again.chain) == expected
        assert all(again.chain.certificate(name) is not None for name in expected[1:])
        again.close()


def test_a_folder_from_before_there_was_an_archive_opens_and_gets_one() -> None:
    with memory_folder() as folder:
        peer = Follower(folder, kept=10 * len(LONG))
        peer.hear(LONG)
        assert not len(peer.chain.archive)
        shelve(peer.log, peer.chain, KEPT)
        assert len(peer.chain.archive) > len(LONG) - KEPT - BLOCK
        peer.close()
        again = Follower(folder)
        assert names_of(again.chain) == [GENESIS.hash, *(record.hash for record in LONG)]
        kinds = [key.partition("/")[0] for key in again.log.load()]
        assert kinds.count("record") < KEPT + BLOCK
        again.close()


def test_who_comes_new_writes_old_records_to_the_archive_at_once() -> None:
    with follower() as donor, memory_folder() as folder:
        donor.hear(LONG)
        newcomer = Follower(folder)
        for record in LONG:
            newcomer.chain.add(record, certificate(record, PEERS[:2]))
        newcomer.chain.follow(newcomer.chain.lineage(LONG[-1].hash))
        updates = shelved_updates(newcomer.log, newcomer.chain, KEPT)
        assert sum(key.startswith("record/") for key in updates) < KEPT + BLOCK
        newcomer.log.write({**updates, HEAD: LONG[-1].hash})
        newcomer.close()
        again = Follower(folder)
        assert names_of(again.chain) == names_of(donor.chain)
        again.close()


def test_a_newcomer_never_holds_a_whole_long_chain_and_can_still_part_from_it() -> None:
    branch, signed = branch_after(LONG[70], (OTHER, THIRD))
    worse = [branch, *aborts(branch, 80)]
    proofs = [signed, *(certificate(record, (OTHER, THIRD)) for record in worse[1:])]
    with memory_folder() as folder:
        log = DurableLog(folder)
        saved = restore({}, GENESIS, open_rounds=2, read=log.read_blob, block=BLOCK)
        state = ProtocolState.begin(NullSigner(ME), settings_of(KEPT), saved, 0.0)

        def hear(records: list[Record], proofs: list[Certificate]) -> None:
            for start in range(0, len(records), 20):
                part = slice(start, start + 20)
                message = told(*records[part], proofs=proofs[part])
                following.on_records(state, OTHER, message, 1.0)
                shelve_told(log, state)

        hear(LONG[:71], [])
        hear(worse, proofs)
        assert state.chain.archive.blocks * BLOCK > 72
        at_hand = sum(state.chain.is_at_hand(record.hash) for record in (*LONG, *worse))
        assert at_hand <= KEPT + BLOCK + 20
        hear(LONG[71:], [])
        wanted = [GENESIS.hash, *(record.hash for record in LONG)]
        assert list(state.target) == wanted
        state.chain.follow(state.target)
        log.write({**shelved_updates(log, state.chain, KEPT), HEAD: wanted[-1]})
        log.close()
        again = Follower(folder)
        assert names_of(again.chain) == wanted
        again.close()


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_block_that_the_disk_has_lost_is_named_when_it_is_asked_for(damage: str) -> None:
    with follower() as peer:
        peer.hear(LONG)
        name = block_blob(1, peer.chain.archive.names.rows[1])
        path = peer.log.blob_path(name)
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-40])
        assert peer.chain.record(peer.chain.path[1]) == LONG[0]
        with pytest.raises(InputFileError, match=name):
            peer.chain.record(peer.chain.path[BLOCK + 1])


def test_blocks_that_differ_in_size_are_refused() -> None:
    rows = {"archive/0": bytes(64), "archive/1": bytes(32), HEAD: GENESIS.hash}
    with pytest.raises(InputFileError, match="differ in size"):
        restore(rows, GENESIS, open_rounds=2)


# -- crashes

SMALL = {"block": 4, "kept": 6}
TOLD = LONG[:30]


def work(home: Path, layer: FileLayer) -> None:
    peer = Follower(home / "state", **SMALL)
    for record in TOLD:
        peer.hear([record])
        layer.mark()
    assert peer.chain.archive.blocks >= 5
    peer.close()


def check(home: Path, marks: int) -> None:
    if not (home / "state").exists():
        assert not marks
        return
    peer = Follower(home / "state", **SMALL)
    number = peer.chain.number
    assert number in {marks - 1, marks}
    assert names_of(peer.chain) == [GENESIS.hash, *(record.hash for record in TOLD[: number + 1])]
    assert all(peer.chain.certificate(name) is not None for name in peer.chain.path[1:])
    peer.hear(TOLD[number + 1 :])
    assert peer.chain.head == TOLD[-1]
    peer.close()


def test_no_record_is_lost_by_a_crash_at_any_call() -> None:
    assert check_every_crash(work, check, seed=20, share=0.5) > 100


def test_a_block_whose_key_comes_first_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    carry = Follower.carry

    def late(self: Follower, actions: list[object]) -> None:
        for action in actions:
            blocks = getattr(action, "blocks", ())
            if blocks:
                self.log.write(action.updates)  # type: ignore[attr-defined]
        carry(self, actions)  # type: ignore[arg-type]

    monkeypatch.setattr(Follower, "carry", late)
    with pytest.raises((AssertionError, InputFileError)):
        check_every_crash(work, check, seed=20, share=0.5)


def test_record_keys_are_those_of_the_newest_records() -> None:
    with follower() as peer:
        peer.hear(LONG)
        at_hand = list(peer.chain.path)[len(peer.chain.archive) :]
        expected = {
            key for name in at_hand for key in record_updates(peer.chain.record(name), None)
        }
        assert {key for key in peer.log.load() if key.startswith("record/")} == expected
