"""The vault over a real log: what a restart finds is what the peer had, however little was written in full."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.blob_shelf import BlobShelf
from runnel.dht.blobs import tree_root
from runnel.errors import InputFileError
from runnel.hashing import digest
from runnel.node.actions import Prepare, RoundKey, WantHandover
from runnel.node.chain import Chain
from runnel.node.durable import DurableLog
from runnel.node.mailbox import HandedOver
from runnel.node.moves import Landing
from runnel.node.pinning import Pinning
from runnel.node.records import Record, RecordKind, Share, SliceResult
from runnel.node.rounds import SLICE_ALIGNMENT
from runnel.node.saved_states import StateKey, state_key, state_name
from runnel.node.vault import Vault
from runnel.optim.codecs import codec_named
from runnel.optim.outer import Nesterov
from runnel.optim.store import OuterStore, StoreParts
from runnel.protocols import Float32
from runnel.types import Digest
from runnel.verification.aggregators import WeightedMean
from tests.support.members import PEERS, following_record, genesis, name

ME, OTHER = PEERS[0], PEERS[1]
FRAGMENTS, NUMEL, EVERY = 2, SLICE_ALIGNMENT + 700, 6
GENESIS = genesis(2)
TOKENS = 7
"""Behind each share of ours."""


def store_of(codec: str = "e3m0") -> OuterStore:
    rng = np.random.default_rng(5)
    values = [rng.standard_normal(NUMEL, dtype=np.float32) for _ in range(FRAGMENTS)]
    parts = StoreParts(
        codec=codec_named(codec),
        result_codec=codec_named("int8"),
        aggregator=WeightedMean(),
        optimizer=Nesterov(lr=0.7, momentum=0.8),
        root_of=tree_root,
    )
    return OuterStore(values, parts)


@dataclass
class Bench:
    """One peer with a vault and a trainer, and a chain whose records this test decides."""

    folder: Path
    every: int = EVERY
    chain: Chain = field(default_factory=lambda: Chain(GENESIS, open_rounds=1))
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    start: list[Float32] = field(default_factory=list)
    tokens: list[int] = field(default_factory=lambda: [0] * FRAGMENTS)

    def __post_init__(self) -> None:
        self.log = DurableLog(self.folder)
        self.store = store_of()
        self.vault = Vault(self.store, self.log, ME, snapshot_every=self.every)
        self.log.write(self.vault.write_all([-1] * FRAGMENTS))
        self.w = [self.store.parameters(f).copy() for f in range(FRAGMENTS)]
        self.learned = [np.zeros(NUMEL, dtype=np.float32) for _ in range(FRAGMENTS)]

    def round(self, included: Sequence[bool], *, give: bool, reducer: bool) -> Record:
        """Trains, contributes if `give`, and decides a record that includes those slices of ours."""
        number = self.chain.number + 1
        fragment, key = number % FRAGMENTS, RoundKey(number, self.chain.base_of(number))
        learned = self.rng.standard_normal(NUMEL, dtype=np.float32) * np.float32(0.01)
        self.w[fragment] -= learned
        self.learned[fragment] += learned
        if give:
            want = WantHandover(key, fragment, 2, urgent=False)
            snapshot = self.w[fragment].copy()
            version = self.store.version(fragment)
            handover = self.vault.contribute(HandedOver(want, snapshot, version, 1, 1, 0.0))
            assert handover is not None
            self.log.write(handover.updates)
        record = self._record(number, key, included if give else (False, False), reducer=reducer)
        self.follow(record)
        return record

    def _record(
        self, number: int, key: RoundKey, included: Sequence[bool], *, reducer: bool
    ) -> Record:
        slices = []
        for index, (low, high) in enumerate(((0, SLICE_ALIGNMENT), (SLICE_ALIGNMENT, NUMEL))):
            mean = self.rng.standard_normal(high - low, dtype=np.float32) * np.float32(0.01)
            loss = np.empty_like(mean)
            payload = codec_named("int8").encode(mean, loss)
            root = digest(payload)
            self.vault.results.keep(root, payload, loss if reducer else None)
            self.log.write({f"result/{root.hex()}": b""})
            mine = (0,) if included[index] else ()
            slices.append(SliceResult(root, ME if reducer else OTHER, (*mine, 1)))
        shares = (Share(ME, name("mine"), TOKENS), Share(OTHER, name("other"), 1))
        state_root = self.vault.prepare(Prepare(key, tuple(slices), shares, final=False))
        empty = following_record(self.chain.head, RecordKind.ROUND)
        fields = {f: getattr(empty, f) for f in empty.__dataclass_fields__}
        return Record(
            **{**fields, "shares": shares, "slices": tuple(slices), "state_root": state_root}
        )

    def abort(self) -> None:
        self.follow(following_record(self.chain.head))

    def give_up(self, count: int, record: Record) -> None:
        """Another path after the record `count` before our head."""
        path = self.chain.path[: len(self.chain.path) - count]
        self._move([*path, self.chain.add(record)])

    def follow(self, record: Record) -> None:
        self._move([*self.chain.path, self.chain.add(record)])

    def _move(self, path: list[Digest]) -> None:
        fork = self.chain.fork_to(path)
        self.chain.follow(path)
        merges, updates = self.vault.follow(self.chain, fork, path)
        self.log.write(updates)
        for merge in merges:
            self.w[merge.merge.fragment] += merge.merge.delta
            self.tokens[merge.merge.fragment] += merge.tokens

    def owed(self, fragment: int) -> Float32:
        """What this peer has learned of a fragment that is not on its chain."""
        store = self.store
        owed: Float32 = store.residual(fragment) + store.parameters(fragment) - self.w[fragment]
        return owed

    def land_on(self, other: Bench) -> None:
        """Takes up the chain of another peer by the state at its head."""
        for record in other.chain.path[1:]:
            self.chain.add(other.chain.record(record))
        states = {
            f: (other.store.parameters(f).copy(), other.store.momentum(f).copy())
            for f in range(FRAGMENTS)
        }
        path = list(other.chain.path)
        self.vault.land(Landing(path[-1], len(path) - 2, states))
        self._move(path)

    # -- what a restart would find

    @contextmanager
    def restarted(self) -> Iterator[Vault]:
        with TemporaryDirectory() as place:
            shutil.copytree(self.folder, Path(place) / "copy")
            log = DurableLog(Path(place) / "copy")
            vault = Vault(store_of(), log, ME, snapshot_every=self.every)
            try:
                vault.resume(log.load(), self.chain, lambda _: False)
                yield vault
            finally:
                log.close()

    def check_restart(self) -> None:
        """Same shared bits; what this peer owes is what it owed and what its trainer had handed over."""
        with self.restarted() as found:
            for f in range(FRAGMENTS):
                assert found.store.root(f) == self.store.root(f)
                owed = found.store.residual(f)
                held = self.store.residual(f) + self.store.parameters(f) - self.w[f]
                # handed over and not taken out; the newest steps of all are lost, and none were made
                np.testing.assert_allclose(owed, held, atol=2e-4)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "state")
    yield made
    made.log.close()


FLAGS = st.tuples(st.booleans(), st.booleans())
EVENTS = st.one_of(
    st.tuples(st.just("round"), FLAGS, st.booleans()),
    st.tuples(st.just("abort")),
)


@settings(max_examples=25)
@given(st.lists(EVENTS, min_size=1, max_size=14))
def test_a_restart_at_any_round_finds_the_state_and_what_is_owed(
    events: list[tuple[object, ...]],
) -> None:
    with TemporaryDirectory() as place:
        bench = Bench(Path(place) / "state")
        try:
            for event in events:
                if event[0] == "round":
                    bench.round(event[1], give=True, reducer=bool(event[2]))  # type: ignore[arg-type]
                else:
                    bench.abort()
            bench.check_restart()
        finally:
            bench.log.close()


def test_most_rounds_write_no_state_and_pinned_ones_do(bench: Bench) -> None:
    for _ in range(3 * EVERY):
        bench.round((True, True), give=True, reducer=True)
    states = {
        int(blob.split("-", 2)[2]) for blob in bench.log.blob_names() if blob.startswith("state-")
    }
    near_pins = {n for n in range(3 * EVERY) if -n % EVERY < FRAGMENTS}
    assert states == {-1, *near_pins}
    bench.check_restart()


def test_a_fragment_whose_rounds_were_aborted_is_written_at_the_pin_all_the_same(
    bench: Bench,
) -> None:
    bench.round((True, True), give=True, reducer=False)
    bench.round((True, True), give=True, reducer=False)
    for _ in range(EVERY):
        bench.abort()
    assert bench.log.has_blob(state_name(0, 0))
    assert bench.log.has_blob(state_name(1, 1))
    bench.check_restart()


def test_records_given_up_are_taken_back_to_a_state_that_was_never_written(bench: Bench) -> None:
    for _ in range(3):
        bench.round((True, True), give=True, reducer=False)
    before = bench.store.root(bench.chain.number % FRAGMENTS)
    middle = bench.chain.record(bench.chain.path[-3]).number
    assert not bench.log.has_blob(state_name(middle % FRAGMENTS, 2))
    owed = [bench.store.residual(f) + bench.store.parameters(f) - bench.w[f] for f in (0, 1)]
    newest = bench.round((True, True), give=True, reducer=False)
    bench.round((True, True), give=True, reducer=False)
    other = following_record(bench.chain.record(newest.parent), nonce=b"other")
    bench.give_up(2, other)
    assert bench.store.root(2 % FRAGMENTS) == before
    for f in range(FRAGMENTS):
        again = bench.store.residual(f) + bench.store.parameters(f) - bench.w[f]
        assert np.abs(again - owed[f]).max() > 1e-3  # what two more rounds learned is owed again
    bench.check_restart()


def test_tokens_are_those_behind_shares_that_our_chain_holds(bench: Bench) -> None:
    bench.round((True, False), give=True, reducer=False)
    bench.round((False, False), give=True, reducer=False)
    assert bench.tokens == [TOKENS, 0]
    bench.round((False, False), give=False, reducer=False)
    bench.round((True, True), give=True, reducer=False)
    assert bench.tokens == [TOKENS, TOKENS]
    bench.give_up(2, following_record(bench.chain.record(bench.chain.path[-3])))
    assert bench.tokens == [TOKENS, 0]
    bench.give_up(3, following_record(GENESIS))
    assert bench.tokens == [0, 0]


def test_a_landing_counts_the_tokens_of_both_paths(tmp_path: Path) -> None:
    ours, other = parted(tmp_path, 3, 7, None)
    assert sum(ours.tokens) == 8 * TOKENS
    ours.land_on(other)
    assert sum(ours.tokens) == 5 * TOKENS
    for bench in (ours, other):
        bench.log.close()


def test_a_state_of_a_branch_that_was_given_up_is_not_taken_for_ours(bench: Bench) -> None:
    for _ in range(EVERY - 1):
        bench.round((True, True), give=True, reducer=False)
    pinned = bench.round((True, True), give=True, reducer=False)  # written in full
    assert bench.log.has_blob(state_name(pinned.number % FRAGMENTS, pinned.number))
    bench.give_up(1, following_record(bench.chain.record(pinned.parent), nonce=b"other"))
    bench.give_up(1, following_record(bench.chain.record(pinned.parent), nonce=b"third"))
    bench.check_restart()


def parted(tmp_path: Path, mine: int, theirs: int, shelf: BlobShelf | None) -> tuple[Bench, Bench]:
    """Two peers with five common rounds, then some of their own; the first cleans up as it goes if it has a shelf."""
    ours, other = Bench(tmp_path / "ours"), Bench(tmp_path / "other")
    pinning = None
    if shelf is not None:
        pinning = Pinning(ours.log, ours.vault, shelf, every=EVERY, keep_rounds=4 * FRAGMENTS)
    for _ in range(5):
        assert (
            ours.round((True, True), give=True, reducer=True).hash
            == other.round((True, True), give=True, reducer=True).hash
        )
    other.rng = np.random.default_rng(2)
    for number in range(mine):
        if number == 0:
            ours.learned = [np.zeros_like(x) for x in ours.learned]
            ours.start = [ours.owed(f) for f in range(FRAGMENTS)]
        ours.round((True, number % 3 > 0), give=True, reducer=number % 2 > 0)
        if pinning is not None and ours.chain.number % EVERY == 0:
            pinning.renew(ours.chain, tuple(ours.chain.path))
    for _ in range(theirs):
        other.round((False, False), give=False, reducer=False)
    return ours, other


@pytest.mark.parametrize(("mine", "theirs"), [(1, 7), (9, 7), (40, 19)])
def test_whoever_gives_up_a_branch_owes_again_what_was_taken_from_it(
    tmp_path: Path, mine: int, theirs: int
) -> None:
    ours, other = parted(tmp_path, mine, theirs, None)
    ours.land_on(other)
    for f in range(FRAGMENTS):
        assert ours.store.root(f) == other.store.root(f)
        np.testing.assert_allclose(ours.owed(f), ours.start[f] + ours.learned[f], atol=1e-5)
    ours.check_restart()
    for bench in (ours, other):
        bench.log.close()


def test_a_branch_that_is_given_up_after_long_needs_none_of_the_states_that_were_cleaned_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, other = parted(tmp_path, 60, 19, BlobShelf())
    assert not any(ours.log.has_blob(state_name(f, n)) for f in range(2) for n in range(5))
    ours.land_on(other)
    for f in range(FRAGMENTS):
        assert ours.store.root(f) == other.store.root(f)
    assert "that are not kept any more" in caplog.text
    ours.round((True, True), give=True, reducer=False)
    ours.check_restart()
    for bench in (ours, other):
        bench.log.close()


def test_a_fragment_that_was_not_fetched_is_taken_back_from_disk(tmp_path: Path) -> None:
    ours, other = parted(tmp_path, 1, 0, None)
    before = [other.store.root(f) for f in range(FRAGMENTS)]
    other.abort()
    for record in other.chain.path[1:]:
        ours.chain.add(other.chain.record(record))
    path = list(other.chain.path)
    ours.vault.land(Landing(path[-1], len(path) - 2, {}))
    ours._move(path)
    assert [ours.store.root(f) for f in range(FRAGMENTS)] == before
    for bench in (ours, other):
        bench.log.close()


def test_a_saved_state_of_another_path_is_not_taken_for_the_one_asked_for(bench: Bench) -> None:
    for _ in range(EVERY + 1):
        bench.round((True, True), give=True, reducer=False)
    fragment = EVERY % FRAGMENTS
    theta: Float32 = np.ones(2 * NUMEL, dtype=np.float32)
    bench.log.write_blob(state_name(fragment, EVERY), [theta.tobytes()])
    with pytest.raises(InputFileError, match="does not lead to"):
        bench.vault.states.read(bench.chain, bench.chain.path, fragment)
    with pytest.raises(InputFileError, match="does not lead to"), bench.restarted():
        pass


def test_results_that_no_record_takes_do_not_fill_the_memory(bench: Bench) -> None:
    for index in range(100):
        payload = index.to_bytes(4, "big") * 1250
        bench.vault.results.keep(digest(payload), payload)
    held = [payload for payload in bench.vault.results._kept.values() if payload is not None]
    assert sum(map(len, held)) <= 8 * bench.store.result_bytes(NUMEL)
    oldest = (0).to_bytes(4, "big") * 1250
    assert bench.vault.results.get(digest(oldest)) == oldest  # from disk


def test_a_missing_result_ends_in_advice(bench: Bench) -> None:
    records = [bench.round((True, True), give=True, reducer=False) for _ in range(4)]
    root = records[2].slices[0].root
    bench.log.write({f"result/{root.hex()}": None})
    with pytest.raises(InputFileError, match="join again"), bench.restarted():
        pass


def test_a_state_that_leads_elsewhere_ends_in_advice(bench: Bench) -> None:
    for _ in range(3):
        bench.round((True, True), give=True, reducer=False)
    theta: Float32 = np.ones(2 * NUMEL, dtype=np.float32)
    bench.log.write_blob(state_name(0, 0), [theta.tobytes()])
    with pytest.raises(InputFileError, match="does not lead to"), bench.restarted():
        pass


def test_a_damaged_key_ends_in_advice(bench: Bench) -> None:
    bench.log.write({state_key(0): b"\xff"})
    with pytest.raises(InputFileError, match="damaged"), bench.restarted():
        pass
    assert StateKey.decode(0, StateKey(4, -1, "r").encode()) == StateKey(4, -1, "r")


def test_the_loss_of_a_result_is_exact_until_its_round_is_decided(bench: Bench) -> None:
    loss = np.linspace(-1, 1, 5000, dtype=np.float32)
    payload = bytes(5000)
    for _ in range(2):  # a standby may make the same result again
        bench.vault.results.keep(digest(payload), payload, loss)
        held = bench.vault.results.loss(digest(payload))
        assert held is not None
        assert np.array_equal(held, loss)
    bench.vault.results.release(digest(payload))
    kept = bench.vault.results.loss(digest(payload))
    assert kept is not None
    assert not np.array_equal(kept, loss)
    np.testing.assert_allclose(kept, loss, atol=1 / 127)
