"""The vault over a real log: what a restart finds is what the peer had, however little was written in full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.dht.blob_shelf import BlobShelf
from runnel.errors import InputFileError
from runnel.hashing import digest
from runnel.node.moves import Landing
from runnel.node.pinning import Pinning
from runnel.node.pins import pins
from runnel.node.saved_states import StateKey, state_key, state_name
from runnel.optim.outer import Adam, Sgd
from runnel.protocols import Float32, OuterOptimizer
from tests.support.crash_images import memory_folder
from tests.support.members import following_record
from tests.support.vault_bench import (
    EVERY,
    FRAGMENTS,
    GENESIS,
    NUMEL,
    TOKENS,
    Bench,
)

FREEZING = Adam(0.02, 0.9, 0.5, 1e-3, freezes=True)
"""After two rounds of a fragment."""


@pytest.fixture
def bench() -> Iterator[Bench]:
    with memory_folder() as folder:
        made = Bench(folder / "state")
        yield made
        made.log.close()


FLAGS = st.tuples(st.booleans(), st.booleans())
EVENTS = st.one_of(
    st.tuples(st.just("round"), FLAGS, st.booleans()),
    st.tuples(st.just("abort"), st.booleans()),
)


@settings(max_examples=40)
@given(st.lists(EVENTS, min_size=1, max_size=14), st.booleans())
def test_a_restart_at_any_round_finds_the_state_and_what_is_owed(
    events: list[tuple[object, ...]], public: bool
) -> None:
    with memory_folder() as place:
        bench = Bench(place / "state", public=public)
        try:
            for event in events:
                if event[0] == "round":
                    bench.round(event[1], give=True, reducer=bool(event[2]))  # type: ignore[arg-type]
                else:
                    bench.abort(give=bool(event[1]))
            bench.check_restart()
        finally:
            bench.log.close()


@pytest.mark.parametrize("optimizer", [Adam(0.02, 0.9, 0.99, 1e-3), FREEZING])
def test_a_restart_finds_all_that_adam_keeps_of_each_parameter(optimizer: Adam) -> None:
    with memory_folder() as place:
        bench = Bench(place / "state", optimizer=optimizer)
        try:
            for _ in range(2 * EVERY + 4):
                bench.round((True, True), give=True, reducer=True)
            bench.abort()
            bench.check_restart()
            with bench.restarted() as found:
                for f in range(FRAGMENTS):
                    assert found.store.shared_sizes[f] == (NUMEL, 2 * NUMEL)
                    assert np.array_equal(found.store.momentum(f), bench.store.momentum(f))
                    assert found.store.momentum(f)[NUMEL:].min() >= 0
                    assert np.any(found.store.momentum(f)[NUMEL:])
        finally:
            bench.log.close()


def test_a_state_without_momentum_is_half_as_large_and_restarts_like_any_other() -> None:
    with memory_folder() as place:
        bench = Bench(place / "state", optimizer=Sgd(0.7))
        try:
            for _ in range(2 * EVERY + 1):
                bench.round((True, True), give=True, reducer=True)
            bench.abort()
            assert bench.store.shared_sizes == ((NUMEL, 0),) * FRAGMENTS
            bench.check_restart()
        finally:
            bench.log.close()


@pytest.mark.parametrize("optimizer", [Adam(0.02, 0.9, 0.99, 1e-3), FREEZING, Sgd(0.7)])
def test_a_leap_takes_up_all_that_an_optimizer_keeps(optimizer: OuterOptimizer) -> None:
    with memory_folder() as one, memory_folder() as two:
        benches = [Bench(at / "state", optimizer=optimizer) for at in (one, two)]
        try:
            for _ in range(5):
                benches[1].round((False, False), give=False, reducer=False)
            benches[0].land_on(benches[1])
            for f in range(FRAGMENTS):
                assert benches[0].store.root(f) == benches[1].store.root(f)
            benches[0].check_restart()
        finally:
            for bench in benches:
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
    bench.round((True, True), give=True, reducer=False)
    assert pins(bench.chain, bench.chain.path, EVERY) == (EVERY + 2, -1)
    assert bench.log.has_blob(state_name(0, EVERY + 2))
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
