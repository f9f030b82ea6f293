"""When a peer that fell behind takes a state instead of results, and where it goes on from."""

from __future__ import annotations

import pytest

from runnel.node import following
from runnel.node.leaping import REPLAYED_WINDOWS, Leaper
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Record
from tests.support.members import PEERS, certificate, following_record, name
from tests.support.states import GENESIS, path_of, result_record, state_of

EVERY = 4
FAR = REPLAYED_WINDOWS * 4


def behind(count: int) -> ProtocolState:
    """A peer at genesis that knows `count` records of the others' path."""
    state = state_of()
    parent: Record = GENESIS
    for number in range(count):
        parent = result_record(parent, f"result {number}")
        state.chain.add(parent, certificate(parent, PEERS[:2]))
    following.aim(state, state.chain.lineage(parent.hash), now=1.0)
    return state


@pytest.mark.parametrize("count", [1, EVERY, FAR])
def test_results_are_enough_while_members_have_them(count: int) -> None:
    assert Leaper(behind(count), every=EVERY).aim() == []


def test_a_peer_that_is_far_behind_leaps_to_the_newest_pin() -> None:
    state = behind(FAR + 2)
    path = Leaper(state, every=EVERY).aim()
    assert path == state.target[: len(path)]
    assert len(path) - 2 == FAR


def test_a_result_that_nobody_has_any_more_makes_it_leap() -> None:
    state = behind(EVERY + 2)
    leaper = Leaper(state, every=EVERY)
    leaper.miss(name("result 0"))
    assert len(leaper.aim()) - 2 == EVERY


def test_a_later_result_that_is_gone_is_no_reason_yet() -> None:
    leaper = Leaper(behind(EVERY + 2), every=EVERY)
    leaper.miss(name("result 3"))
    assert leaper.aim() == []


def test_there_is_no_leap_to_a_pin_already_passed() -> None:
    state = behind(EVERY + 3)
    state.chain.follow(state.target[: EVERY + 3])
    leaper = Leaper(state, every=EVERY)
    leaper.miss(name(f"result {EVERY + 1}"))
    assert leaper.aim() == []


def test_whoever_is_at_the_head_has_nothing_to_leap_to() -> None:
    state = behind(FAR + 2)
    state.chain.follow(state.target)
    assert Leaper(state, every=EVERY).aim() == []


def test_where_it_can_land_it_goes_on_without_results() -> None:
    state = behind(EVERY + 2)
    landing = state.target[: EVERY + 2]
    state.pursuit.landing = landing
    _, path = following.next_step(state, now=1.0)
    assert path == landing
    state.chain.follow(path)
    fetches, path = following.next_step(state, now=1.0)
    assert fetches
    assert path == []
    assert path_of(state)[-1] == landing[-1]


def branched(mine: int, theirs: int) -> ProtocolState:
    """A peer whose path parts from a better one after the first record."""
    state = behind(1)
    state.chain.follow(state.target)
    better: Record = state.chain.head
    for number in range(theirs):
        better = result_record(better, f"better {number}")
        state.chain.add(better, certificate(better, PEERS[:2], attempt=1))
    own: Record = state.chain.head
    for number in range(mine):
        own = result_record(own, f"own {number}")
        state.chain.follow([*path_of(state), state.chain.add(own, certificate(own, PEERS[:2]))])
    following.aim(state, state.chain.lineage(better.hash), now=1.0)
    assert state.target
    return state


def test_a_branch_is_given_up_record_by_record_while_its_states_are_kept() -> None:
    state = branched(mine=4 * 4, theirs=2 * EVERY)
    assert Leaper(state, every=EVERY).aim() == []
    fetches, _ = following.next_step(state, now=1.0)
    assert fetches


def test_a_long_branch_is_given_up_by_landing_on_a_pin_of_the_other_one() -> None:
    state = branched(mine=4 * 4 + 1, theirs=2 * EVERY)
    assert following.next_step(state, now=1.0) == ([], [])
    leaper = Leaper(state, every=EVERY)
    path = leaper.aim()
    assert len(path) - 2 == 2 * EVERY
    state.pursuit.landing = path
    assert following.next_step(state, now=1.0) == ([], path)
    state.chain.follow(path)
    assert path_of(state) == path


@pytest.mark.parametrize("theirs", [1, EVERY - 1])
def test_a_long_branch_goes_on_until_the_other_one_has_a_pin_to_land_on(theirs: int) -> None:
    state = branched(mine=4 * 4 + 1, theirs=theirs)
    assert Leaper(state, every=EVERY).aim() == []
    assert following.next_step(state, now=1.0) == ([], [])
    assert state.target


def test_a_landing_beside_the_path_that_is_wanted_by_now_is_not_taken() -> None:
    state = branched(mine=4 * 4 + 1, theirs=2 * EVERY)
    path = Leaper(state, every=EVERY).aim()
    state.pursuit.landing = path
    fork = state.chain.record(path[-3])
    best = result_record(fork, "best")
    state.chain.add(best, certificate(best, PEERS[:2], attempt=2))
    following.aim(state, state.chain.lineage(best.hash), now=2.0)
    assert following.next_step(state, now=2.0) == ([], [])


def test_behind_a_fetched_state_there_is_no_way_back_record_by_record() -> None:
    state = behind(EVERY + 2)
    state.chain.follow(state.target)
    head = len(state.chain.path)
    assert not state.parts_deeply(head - 2)
    state.saved.past.floor = state.chain.number - 1
    assert state.parts_deeply(head - 2)
    assert not state.parts_deeply(head - 1)
    assert not state.parts_deeply(head)


def test_a_fragment_without_rounds_on_either_side_keeps_nobody_from_landing() -> None:
    state = behind(1)
    state.chain.follow(state.target)
    parent: Record = state.chain.head
    for number in range(2 * EVERY):  # fragments 1 to 3 of four; rounds of fragment 0 are aborted
        whole = (number + 1) % 4
        parent = result_record(parent, f"better {number}") if whole else following_record(parent)
        state.chain.add(parent, certificate(parent, PEERS[:2]))
    following.aim(state, state.chain.lineage(parent.hash), now=1.0)
    leaper = Leaper(state, every=EVERY)
    leaper.miss(name("better 0"))
    assert leaper.aim()
