"""The store of a shared-seed run: what is tried is taken back exactly, and every way leads to the same bits."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import BugError, PeerError, RunMismatchError
from runnel.hashing import digest
from runnel.optim import seed_store
from runnel.optim.exchange import RoundResults
from runnel.optim.fedkseed import LocalStep, pack_steps
from runnel.optim.fixed_point import MasterWeights
from runnel.optim.fragments import ParameterShape, plan_fragments
from runnel.optim.just_one_byte import pack_codes
from runnel.optim.seed_methods import LearningRate, OneByteMethod, PoolMethod, most_directions
from runnel.optim.seed_rounds import RoundEntry
from runnel.optim.seed_store import SeedStore
from runnel.optim.seed_updates import UNIT_SHIFT, Entries

SHAPES = (ParameterShape("b", (70, 70)), ParameterShape("a", (5,)), ParameterShape("c", ()))
PLAN = plan_fragments(SHAPES, 1)
METHOD = OneByteMethod(2, LearningRate(0.01))
CODES = st.lists(st.integers(-127, 127) | st.none(), min_size=2, max_size=2)
ROUNDS = st.lists(st.dictionaries(st.integers(0, 63), CODES, min_size=1, max_size=3), max_size=4)


def store_of(*, scale: float = 1.0, seed: int = 0) -> SeedStore:
    rng = np.random.default_rng(seed)
    arrays = {s.name: rng.standard_normal(s.shape) * scale for s in SHAPES}
    weights = MasterWeights.from_arrays(arrays, (1, 2))
    return SeedStore(weights, METHOD, lambda parts: digest(*(bytes(p) for p in parts)))


def entry(shares: dict[int, list[int | None]]) -> bytes:
    return RoundEntry(0, {seat: pack_codes(codes) for seat, codes in shares.items()}).encode()


FIRST, SECOND = entry({0: [3, -70]}), entry({0: [3, -70], 7: [127, 1]})


def test_the_state_is_all_weights_in_the_plans_order_and_a_little_more() -> None:
    store = store_of()
    places = [(piece.parameter, piece.offset) for piece in PLAN.fragments[0]]
    offsets = accumulate((t.values.size for t in store.weights.tensors[:-1]), initial=0)
    assert places == list(zip(store.weights.ids, offsets, strict=True))
    words, rest = store.shared(0)
    assert (words.size, rest.size) == store.shared_sizes[0]
    assert words.size == 70 * 70 + 5 + 1
    np.testing.assert_array_equal(words.view(np.int32)[:5], store.weights.tensors[0].values)
    np.testing.assert_allclose(store.parameters(0)[:5], store.weights.arrays()["a"])


def test_a_tried_round_is_taken_back_to_the_last_bit() -> None:
    store = store_of()
    before, mark = store.root(0), store.mark
    tried = store.prepare("one", FIRST)
    assert tried != before
    assert store.mark != mark
    with pytest.raises(BugError, match="not decided"):
        store.shared(0)
    store.retract()
    assert (store.root(0), store.mark) == (before, mark)
    assert store.turn == 2
    store.retract()
    assert store.turn == 2


def test_what_is_tried_again_has_the_same_name() -> None:
    store = store_of()
    first = store.prepare("one", FIRST)
    assert store.prepare("one", FIRST) == first
    assert store.prepare("two", SECOND) != first
    assert store.prepare("one", FIRST) == first
    store.adopt("one")
    assert store.root(0) == first
    assert store.state.step == 1


def test_only_what_was_tried_last_can_be_adopted() -> None:
    store = store_of()
    with pytest.raises(BugError, match="no prepared"):
        store.adopt("one")
    store.prepare("one", FIRST)
    store.prepare("two", SECOND)
    with pytest.raises(BugError, match="no prepared"):
        store.adopt("one")


def test_bytes_that_are_no_round_change_nothing() -> None:
    store = store_of()
    before = store.root(0)
    with pytest.raises(PeerError, match="malformed"):
        store.prepare("one", b"\x01")
    assert store.root(0) == before


@given(ROUNDS)
def test_a_fetched_state_and_a_replayed_one_are_those_that_were_followed(
    rounds: list[dict[int, list[int | None]]],
) -> None:
    followed, fetched = store_of(), store_of(seed=1)
    state = tuple(part.copy() for part in followed.shared(0))
    for number, shares in enumerate(rounds):
        followed.prepare(number, entry(shares))
        followed.adopt(number)
    first, rest = rounds[:1], rounds[1:]
    for part in (first, rest):
        before = state[0], state[1]
        followed.replay(before, [RoundResults((), [entry(shares)]) for shares in part])
    assert followed.root_of((state[0], state[1])) == followed.root(0)
    fetched.load(0, *state)
    assert fetched.root(0) == followed.root(0)
    assert fetched.state == followed.state


def test_a_fetched_state_brings_its_own_units_once() -> None:
    large, small = store_of(scale=100.0), store_of()
    small.load(0, *large.shared(0))
    assert small.root(0) == large.root(0)
    np.testing.assert_array_equal(small.parameters(0), large.parameters(0))
    with pytest.raises(RunMismatchError, match="other units"):
        small.load(0, *store_of().shared(0))


def test_units_that_no_run_has_are_refused() -> None:
    store = store_of()
    words, rest = store.shared(0)
    rest.view(np.uint8)[0] = 200
    with pytest.raises(RunMismatchError, match="no run has"):
        store.load(0, words, rest)


def test_a_lock_is_held_while_integers_change() -> None:
    held: list[str] = []

    class Lock:
        def __enter__(self) -> None:
            held.append("in")

        def __exit__(self, *exc: object) -> None:
            held.append("out")

    arrays = {s.name: np.zeros(s.shape) for s in SHAPES}
    weights = MasterWeights.from_arrays(arrays, (1, 2))
    store = SeedStore(weights, METHOD, lambda _: digest(b""), lock=Lock())
    store.prepare("one", FIRST)
    store.retract()
    assert held == ["in", "out"] * 2


@given(ROUNDS)
def test_several_rounds_at_once_lead_where_each_by_itself_leads(
    rounds: list[dict[int, list[int | None]]],
) -> None:
    single, fused = store_of(), store_of()
    for number, shares in enumerate(rounds):
        single.prepare(number, entry(shares))
        single.adopt(number)
    fused.prepare("tried", SECOND)
    assert fused.advance([entry(shares) for shares in rounds]) == single.root(0)
    assert (fused.version, fused.state) == (single.version, single.state)
    assert fused.prepare("next", FIRST) == single.prepare("next", FIRST)
    assert fused.state_at(0) == single.state_at(0) == METHOD.first()


def test_a_round_that_is_none_among_several_changes_nothing() -> None:
    store = store_of()
    before = store.root(0)
    with pytest.raises(PeerError, match="malformed"):
        store.advance([FIRST, b"\x01"])
    assert (store.root(0), store.version) == (before, 0)


@pytest.mark.parametrize("tried", [False, True])
def test_weights_before_recent_rounds_are_at_hand_whatever_is_tried(*, tried: bool) -> None:
    store = store_of()
    seen = [(store.version, store.state, store.weights.arrays())]
    for number in range(12):
        store.prepare(number, entry({number % 3: [number, -70]}))
        store.adopt(number)
        seen.append((store.version, store.state, store.weights.arrays()))
    if tried:
        store.prepare("tried", FIRST)
    for version, state, arrays in seen[-9:]:
        assert store.state_at(version) == state
        for number, tensor in enumerate(store.weights.tensors):
            out = np.empty(tensor.values.size, np.float32)
            store.materialise_at(version, number, out)
            np.testing.assert_array_equal(out, arrays[tensor.name].reshape(-1))
    with pytest.raises(LookupError, match="version 3"):
        store.state_at(3)
    store.retract()
    state_now = tuple(part.copy() for part in store.shared(0))
    store.load(0, *state_now)
    with pytest.raises(LookupError):
        store.state_at(store.version - 1)
    assert store.state_at(store.version) == store.state


ENTRY = st.tuples(
    st.integers(0, 2), st.integers(0, 1), st.sampled_from([-9, -3, 0, 3, 9]), st.integers(-1, 1)
)


def columns(rows: list[tuple[int, int, int, int]]) -> Entries:
    counters, slots, coefficients, tensors = (
        (list(c) for c in zip(*rows, strict=True)) if rows else ([],) * 4
    )
    return Entries(
        np.array(counters, np.uint32),
        np.array(slots, np.uint32),
        np.array(coefficients, np.int64),
        np.array(tensors, np.int32),
    )


@given(st.lists(ENTRY, max_size=20))
def test_without_what_undoes_each_other_the_sum_is_the_same_in_any_unit(
    rows: list[tuple[int, int, int, int]],
) -> None:
    entries = columns(rows)
    left = entries.without_opposites()
    kept = list(zip(left.counters, left.slots, left.coefficients, left.tensors, strict=True))
    assert not {(a, b, -c, d) for a, b, c, d in kept} & set(kept)
    for tensor in (0, 1):
        for shift in (UNIT_SHIFT, UNIT_SHIFT - 2):
            assert sums_of(left, tensor, shift) == sums_of(entries, tensor, shift)


def sums_of(entries: Entries, tensor: int, shift: int) -> dict[tuple[int, int], int]:
    sums: dict[tuple[int, int], int] = {}
    for code, counter, slot in zip(*entries.of_tensor(tensor, shift), strict=True):
        sums[int(counter), int(slot)] = sums.get((int(counter), int(slot)), 0) + int(code)
    return {place: total for place, total in sums.items() if total}


def test_many_rounds_of_a_pool_cost_each_of_its_seeds_twice_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seed_store, "_REDUCED_DIRECTIONS", 16)
    rng, method = np.random.default_rng(5), PoolMethod(4, 2, LearningRate(0.01))
    arrays = {s.name: rng.standard_normal(s.shape) * 100 for s in SHAPES}
    store = SeedStore(
        MasterWeights.from_arrays(arrays, (1, 2)), method, lambda parts: digest(*parts)
    )
    weights, rest = store.shared(0)
    first, at_first, entries = weights.copy(), rest.copy(), list[bytes]()
    for _ in range(40):
        steps = [LocalStep(int(rng.integers(4)), int(rng.integers(-127, 128))) for _ in range(2)]
        entries.append(RoundEntry(0, {3: pack_steps(steps)}).encode())
        store.prepare(len(entries), entries[-1])
        store.adopt(len(entries))
    rounds = [RoundResults((), [one]) for one in entries]
    (changes,) = store.changes((first, at_first.copy()), rounds)
    assert 4 <= len(changes) <= 8
    store.replay((first, at_first), rounds)
    assert first.tobytes() == store.shared(0)[0].tobytes()
    assert at_first.tobytes() == store.shared(0)[1].tobytes()
    assert most_directions(method, 80) == 8


@given(st.lists(ENTRY, max_size=30), st.integers(1, 300), st.integers(1, 5))
def test_pieces_are_all_of_it_and_of_a_size(
    rows: list[tuple[int, int, int, int]], most: int, least: int
) -> None:
    entries, sizes = columns(rows).without_opposites(), (10, 100)
    pieces = entries.pieces(sizes, most, least)
    assert sum(len(piece) for piece, _ in pieces) == len(entries)
    for column in ("counters", "slots", "coefficients", "tensors"):
        joined = [value for piece, _ in pieces for value in getattr(piece, column)]
        assert joined == list(getattr(entries, column))
    for piece, sums in pieces:
        assert sums == sum(110 if t < 0 else sizes[t] for t in piece.tensors)
        assert sums <= most or len(piece) <= least
