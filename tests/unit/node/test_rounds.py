"""One round's data: slices, reducers, who sends what to whom and when, and which result is chosen."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.node.actions import Action, Prepare, Reduce, RoundKey, Scatter
from runnel.node.outcomes import abort_record, round_record
from runnel.node.records import SliceResult
from runnel.node.round_data import DataWait, advance_data, overdue_for_data
from runnel.node.rounds import SLICE_ALIGNMENT, Round, RoundFacts, SliceState, slice_bounds
from runnel.types import Digest, PeerId
from tests.support.members import PEERS, commitment, following_record, genesis, name

KEY = RoundKey(5, name("base"))
DATA_S = 2.0


def opened(members: int = 3, slices: int = 2) -> Round:
    facts = RoundFacts(
        key=KEY, fragment=1, final=False, view=PEERS[:members], voters=PEERS[:members], opened=0.0
    )
    return Round(facts, [SliceState() for _ in range(slices)])


def decided(members: int = 3, slices: int = 2) -> Round:
    place = opened(members, slices)
    commitments = [commitment(p, 5, KEY.base, slices=slices) for p in PEERS[:members]]
    place.decide(tuple(sorted(commitments, key=lambda c: c.id)), None, 10.0)
    return place


def result(
    place: Round, index: int, label: str, *included: int, standby: bool = False
) -> SliceResult:
    senders = included or tuple(range(len(place.decided or ())))
    return SliceResult(name(label), place.reducers(index)[standby], senders)


def data(
    place: Round,
    me: PeerId,
    now: float,
    held: set[Digest] | None = None,
    *,
    gone: Collection[PeerId] = (),
) -> list[Action]:
    wait = DataWait(now - place.decided_at, DATA_S, gone.__contains__)
    return advance_data(place, me, held or set(), wait=wait)


def worker(place: Round, index: int = 0) -> PeerId:
    return place.reducers(index)[0]


def standby(place: Round, index: int = 0) -> PeerId:
    return place.reducers(index)[1]


def bystander(place: Round, index: int = 0) -> PeerId:
    return next(p for p in place.view if p not in place.reducers(index))


# -- slices


@given(st.integers(1, 10**7), st.integers(1, 64))
def test_every_value_is_in_exactly_one_aligned_slice(numel: int, members: int) -> None:
    bounds = slice_bounds(numel, members)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == numel
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    assert all(low % SLICE_ALIGNMENT == 0 and low < high for low, high in bounds)
    sizes = [high - low for low, high in bounds]
    assert max(sizes) - min(sizes) <= 2 * SLICE_ALIGNMENT
    assert len(bounds) <= members


def test_a_small_fragment_is_one_slice() -> None:
    assert slice_bounds(100, 5) == ((0, 100),)
    assert slice_bounds(SLICE_ALIGNMENT + 1, 5) == ((0, SLICE_ALIGNMENT), (4096, 4097))


# -- reducers


def test_worker_and_standby_are_drawn_from_the_decided_set() -> None:
    place = decided(4, slices=4)
    assert {worker(place, i) for i in range(4)} == set(PEERS[:4])
    for index in range(4):
        assert standby(place, index) == worker(place, (index + 1) % 4)


def test_another_base_draws_another_order() -> None:
    orders = set()
    for i in range(20):
        key = RoundKey(5, name(f"base {i}"))
        facts = RoundFacts(
            key=key, fragment=0, final=False, view=PEERS[:4], voters=PEERS[:4], opened=0.0
        )
        place = Round(facts, [SliceState()])
        place.decide(tuple(commitment(p, 5, key.base) for p in PEERS[:4]), None, 0.0)
        orders.add(place.drawn)
    assert len(orders) > 5


def test_one_contributor_is_worker_and_standby() -> None:
    place = decided(1)
    assert place.reducers(0) == (PEERS[0], PEERS[0])


# -- slow links


def with_slow(withheld: dict[int, tuple[int, ...]], members: int = 3, slices: int = 2) -> Round:
    """A decided round in which some members withhold slices."""
    place = opened(members, slices)
    commitments = [
        commitment(p, 5, KEY.base, slices=slices, withheld=withheld.get(i, ()))
        for i, p in enumerate(PEERS[:members])
    ]
    place.decide(tuple(sorted(commitments, key=lambda c: c.id)), None, 10.0)
    return place


def test_a_slow_link_has_nothing_to_reduce() -> None:
    place = with_slow({1: (0,)}, members=4, slices=4)
    assert {worker(place, i) for i in range(4)} == {PEERS[0], PEERS[2], PEERS[3]}
    assert PEERS[1] not in {standby(place, i) for i in range(4)}


def test_a_slow_link_stands_in_for_a_lone_worker() -> None:
    place = with_slow({1: (0, 1), 2: (0,)})
    assert {worker(place, i) for i in range(2)} == {PEERS[0]}
    assert {standby(place, i) for i in range(2)} == {PEERS[1], PEERS[2]}


def test_where_all_links_are_slow_all_reduce() -> None:
    place = with_slow({0: (0,), 1: (1,), 2: (0, 1)})
    assert {worker(place, i) for i in range(3)} == set(PEERS[:3])


def test_what_is_withheld_is_not_sent_and_the_rest_is() -> None:
    place = with_slow({1: (0,)})
    sent = [a.slice_index for a in data(place, PEERS[1], 10.1) if isinstance(a, Scatter)]
    assert sent == [1]
    late = [a.slice_index for a in data(place, PEERS[1], 99.0) if isinstance(a, Scatter)]
    assert late == [1]  # to the standby


def test_nobody_waits_for_what_is_withheld() -> None:
    place = with_slow({1: (0,)})
    arrive(place, PEERS[0], PEERS[2])
    made = reductions(data(place, worker(place), 10.1))
    assert [len(action.senders) for action in made] == [2]
    assert PEERS[1] not in overdue_for_data(place, worker(place), set())


def test_a_slow_link_that_stands_in_counts_what_it_withholds_from_others() -> None:
    place = with_slow({1: (0, 1)}, members=2)
    arrive(place, PEERS[0])
    made = reductions(data(place, PEERS[1], 99.0))
    assert [len(action.senders) for action in made if action.slice_index == 0] == [2]


# -- scatter


def test_nothing_is_sent_before_the_set_is_decided() -> None:
    assert data(opened(), PEERS[0], 99.0) == []


def test_each_slice_goes_to_its_worker_once() -> None:
    place = decided(3, slices=3)
    me = PEERS[0]
    sent = [a for a in data(place, me, 10.1) if isinstance(a, Scatter)]
    assert {(a.slice_index, a.to) for a in sent} == {
        (i, worker(place, i)) for i in range(3) if worker(place, i) != me
    }
    assert data(place, me, 10.2) == []


def test_the_standby_gets_data_only_once_the_worker_is_late() -> None:
    place = decided()
    me = bystander(place)
    first = [a.to for a in data(place, me, 12.9) if isinstance(a, Scatter) and not a.slice_index]
    late = [a.to for a in data(place, me, 13.1) if isinstance(a, Scatter) and not a.slice_index]
    assert (first, late) == ([worker(place)], [standby(place)])


def test_a_failed_transfer_is_tried_again() -> None:
    place = decided(slices=1)
    me = bystander(place)
    assert len(data(place, me, 10.1)) == 1
    place.slices[0].sent_to.discard(worker(place))
    assert len(data(place, me, 10.2)) == 1


def test_who_is_not_in_the_set_sends_nothing() -> None:
    assert data(decided(2), PEERS[5], 99.0) == []


# -- reduce


def arrive(place: Round, *peers: PeerId) -> None:
    place.slices[0].arrived |= {c.id for c in place.decided or () if c.peer in peers}


def reductions(actions: list[Action]) -> list[Reduce]:
    return [a for a in actions if isinstance(a, Reduce)]


def test_the_worker_reduces_at_once_when_all_are_here() -> None:
    place = decided(slices=1)
    arrive(place, *place.view)
    (only,) = reductions(data(place, worker(place), 10.1))
    assert only.included == (0, 1, 2)
    assert only.senders == place.decided
    assert reductions(data(place, worker(place), 99.0)) == []


def test_the_worker_goes_without_those_who_miss_its_deadline() -> None:
    place = decided(slices=1)
    me = worker(place)
    arrive(place, bystander(place))
    assert reductions(data(place, me, 12.0)) == []
    (only,) = reductions(data(place, me, 12.1))
    members = [c.peer for c in place.decided or ()]
    assert only.included == tuple(sorted(members.index(p) for p in (me, bystander(place))))
    assert [c.peer for c in only.senders] == [members[i] for i in only.included]


def test_the_standby_waits_twice_as_long() -> None:
    place = decided(slices=1)
    me = standby(place)
    assert reductions(data(place, me, 13.9)) == []
    assert len(reductions(data(place, me, 14.1))) == 1


def test_nobody_waits_for_the_payload_of_a_peer_that_is_gone() -> None:
    place = decided(slices=1)
    me, lost = worker(place), bystander(place)
    arrive(place, me, standby(place))
    assert reductions(data(place, me, 10.1)) == []
    (only,) = reductions(data(place, me, 10.1, gone={lost}))
    assert {c.peer for c in only.senders} == {me, standby(place)}


def test_the_standby_takes_over_at_once_from_a_worker_that_is_gone() -> None:
    place = decided(slices=1)
    lost, me = worker(place), standby(place)
    sent = [
        a.to for a in data(place, bystander(place), 10.1, gone={lost}) if isinstance(a, Scatter)
    ]
    assert me in sent
    arrive(place, me, bystander(place))
    assert len(reductions(data(place, me, 10.1, gone={lost}))) == 1


def test_workers_without_a_result_and_senders_without_a_payload_are_overdue() -> None:
    place = decided(slices=1)
    me = worker(place)
    assert overdue_for_data(place, me, set()) == set()  # nothing at all came: the links may be slow
    assert overdue_for_data(place, bystander(place), set()) == {me}
    arrive(place, me)
    assert overdue_for_data(place, me, set()) == {standby(place), bystander(place)}
    made = result(place, 0, "made")
    place.slices[0].results[made] = 8
    assert overdue_for_data(place, bystander(place), set()) == {me}
    assert overdue_for_data(place, bystander(place), {made.root}) == set()


def test_a_result_that_is_named_and_not_handed_out_brings_in_the_standby() -> None:
    place = decided(slices=1)
    made = result(place, 0, "made")
    data(place, bystander(place), 10.1)
    place.slices[0].results[made] = 8
    assert data(place, bystander(place), 12.9) == []
    late = [a for a in data(place, bystander(place), 13.1) if isinstance(a, Scatter)]
    assert [a.to for a in late] == [standby(place)]


def test_whoever_holds_a_result_sends_nothing_more() -> None:
    place = decided(slices=1)
    made = result(place, 0, "made")
    place.slices[0].results[made] = 8
    late = data(place, bystander(place), 99.0, {made.root})
    assert not [a for a in late if isinstance(a, Scatter)]


def test_a_bystander_never_reduces() -> None:
    place = decided(slices=1)
    arrive(place, *place.view)
    assert reductions(data(place, bystander(place), 99.0)) == []


# -- results


def test_the_result_with_most_senders_is_chosen_then_the_smaller_root() -> None:
    place = decided(slices=1)
    few, many = result(place, 0, "few", 0, 1), result(place, 0, "many", 0, 1, 2)
    twin = result(place, 0, "twin", 0, 1, 2, standby=True)
    place.slices[0].results.update({few: 1, many: 1, twin: 1})
    assert place.best_held({few.root}) == (few,)
    best = min(many, twin, key=lambda r: r.root)
    assert place.best_held({few.root, many.root, twin.root}) == (best,)
    assert place.best_held(set()) is None


def test_missing_are_announced_results_that_are_not_held() -> None:
    place = decided(slices=2)
    one, two = result(place, 0, "one"), result(place, 1, "two")
    place.slices[0].results[one] = 7
    place.slices[1].results[two] = 0
    assert place.missing({one.root}) == [(two, 0)]
    assert place.missing(set()) == [(one, 7), (two, 0)]


def test_a_state_is_prepared_once_all_slices_are_held() -> None:
    place = decided(slices=2)
    one, two = result(place, 0, "one"), result(place, 1, "two")
    place.slices[0].results[one] = place.slices[1].results[two] = 1
    held = {one.root}
    assert not [a for a in data(place, PEERS[5], 11.0, held) if isinstance(a, Prepare)]
    held.add(two.root)
    (only,) = data(place, PEERS[5], 11.0, held)
    assert only == Prepare(KEY, (one, two), place.shares, final=False)
    assert data(place, PEERS[5], 11.0, held) == []


@pytest.mark.parametrize(
    ("index", "reducer", "included", "problem"),
    [
        (0, None, (0, 1, 2), ""),
        (0, None, (1,), ""),
        (2, None, (0,), "slice"),
        (0, None, (0, 3), "nobody"),
        (0, PEERS[7], (0,), "not drawn"),
    ],
)
def test_a_result_must_be_one_of_this_round(
    index: int, reducer: PeerId | None, included: tuple[int, ...], problem: str
) -> None:
    place = decided()
    given_result = SliceResult(name("r"), reducer or worker(place), included)
    assert (problem in place.misfit(index, given_result)) is True
    assert bool(place.misfit(index, given_result)) is bool(problem)


def test_a_record_put_to_the_vote_names_results_for_who_missed_them() -> None:
    place = decided(slices=1)
    chosen = (result(place, 0, "r"),)
    record = round_record(genesis(3), place, chosen, name("state"))
    assert place.could_be(record)
    place.take_candidate(record)
    assert place.missing(set()) == [(chosen[0], 0)]


def test_a_record_named_before_the_set_is_decided_counts_afterwards() -> None:
    place, later = decided(slices=1), opened(slices=1)
    record = round_record(genesis(3), place, (result(place, 0, "r"),), name("state"))
    later.take_candidate(record)
    assert later.missing(set()) == []
    later.decide(place.decided or (), None, 3.0)
    assert [piece.root for piece, _ in later.missing(set())] == [name("r")]


def test_a_record_of_another_set_says_nothing_about_this_round() -> None:
    place, other = decided(3, slices=1), decided(2, slices=1)
    record = round_record(genesis(3), other, (result(other, 0, "r"),), name("state"))
    place.take_candidate(record)
    assert not place.could_be(record)
    assert place.missing(set()) == []
    assert not place.could_be(abort_record(following_record(genesis(3))))


def test_a_commitment_is_found_by_its_name_before_and_after_the_decision() -> None:
    place = opened()
    early = commitment(PEERS[0], 5, KEY.base)
    place.commits[PEERS[0]] = early
    assert place.commitment(early.id) == early
    assert place.own(PEERS[0]) is None
    done = decided()
    mine = done.own(PEERS[1])
    assert mine is not None
    assert done.commitment(mine.id) == mine
    assert done.commitment(name("?")) is None
