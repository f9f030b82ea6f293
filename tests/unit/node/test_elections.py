"""What is put to the vote and when, what may be voted for, and what is said again: rule by rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from runnel.dht.identity import NullSigner, null_peer_id
from runnel.node import taking_part
from runnel.node.actions import RoundKey, WantHandover
from runnel.node.branches import REACH_S
from runnel.node.chain import Chain
from runnel.node.elections import ABORT_ATTEMPTS, Elections
from runnel.node.following import aim
from runnel.node.messages import Commit, ResultReady
from runnel.node.outcomes import abort_record
from runnel.node.protocol import RoundProtocol
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import SliceResult, set_value
from runnel.node.rounds import Drawn, Round
from runnel.node.storage_keys import Restored
from runnel.types import Digest, PeerId
from runnel.verification.votes import Instance
from tests.support.members import PEERS, commitment, genesis, name
from tests.support.states import (
    GENESIS,
    ME,
    OTHER,
    THIRD,
    branch_after,
    messages,
    settings_of,
    state_of,
)

KEY = RoundKey(0, GENESIS.hash)
SET, OUTCOME = Instance("set", 0, GENESIS.hash), Instance("outcome", 0, GENESIS.hash)
RESULT = SliceResult(name("result"), ME, (0,))


def opened(committed: tuple[PeerId, ...] = ()) -> tuple[ProtocolState, Round, Elections]:
    """A round of three in which some have committed, half of them at time 0."""
    state = state_of()
    place = taking_part.open_round(state, KEY, 0.0)
    for peer in committed:
        place.commits[peer] = commitment(peer, 0, GENESIS.hash)
    place.half_at = 0.0 if 2 * len(committed) >= len(place.voters) else None
    return state, place, Elections(state)


def decided(*, held: bool) -> tuple[ProtocolState, Round, Elections]:
    """A round whose set is decided; the only result is held, its state not computed."""
    state, place, elections = opened((ME, OTHER))
    place.decide(tuple(place.commits.values()), None, 0.0)
    if held:
        place.slices[0].results[RESULT] = 8
        state.held[RESULT.root] = 0
    return state, place, elections


def test_a_set_waits_for_whoever_was_just_heard_and_no_longer_than_its_deadline() -> None:
    state, place, elections = opened((ME, OTHER))
    chosen = set_value(sorted(c.id for c in place.commits.values()))
    assert elections.propose(SET, 0, 0.1) == chosen  # the third is silent
    deadline_s = state.deadlines.commits.deadline_s()
    state.members.hear(THIRD, deadline_s - 0.2, 0)
    assert elections.propose(SET, 0, deadline_s - 0.1) is None
    assert elections.propose(SET, 0, deadline_s + 0.1) == chosen


def test_a_set_does_not_wait_for_a_member_that_is_rounds_behind() -> None:
    # two rounds are open, and the newest record may be on its way: from -4 on it is not 0
    for reached, waits in ((-3, True), (-4, False)):
        state, _, elections = opened((ME, OTHER))
        state.members.hear(THIRD, 0.1, 0)
        state.members.stands_at(THIRD, reached)
        state.members.stands_at(THIRD, reached - 5)  # an older greeting that comes later
        assert (elections.propose(SET, 0, 0.2) is None) == waits


def test_nobody_waits_again_for_a_peer_that_let_a_deadline_pass() -> None:
    state, _, elections = opened((ME, OTHER))
    state.members.hear(THIRD, 0.1, 0)
    state.members.missed(THIRD, 0.2, 0.3)
    assert elections.propose(SET, 0, 0.4) is not None


def test_a_set_waits_for_half_of_the_voters_however_long() -> None:
    _, _, elections = opened((ME,))
    assert elections.propose(SET, 0, 1e6) is None


def test_a_round_is_given_up_after_its_deadline_and_not_before() -> None:
    state, _, elections = decided(held=False)
    wait_s = state.deadlines.abort_s
    assert elections.propose(OUTCOME, 0, 0.9 * wait_s) is None
    assert elections.propose(OUTCOME, ABORT_ATTEMPTS, 0.9 * wait_s) is None
    assert elections.propose(OUTCOME, 0, 1.1 * wait_s) == abort_record(GENESIS).hash


def test_who_holds_the_results_gives_a_round_up_only_in_a_later_attempt() -> None:
    state, _, elections = decided(held=True)
    late = 1.1 * state.deadlines.abort_s
    assert elections.propose(OUTCOME, ABORT_ATTEMPTS - 1, late) is None
    assert elections.propose(OUTCOME, ABORT_ATTEMPTS, late) == abort_record(GENESIS).hash


def test_who_signed_a_branch_votes_no_more_on_the_outcome_and_still_on_sets() -> None:
    state, _, elections = opened()
    assert not elections.halted(OUTCOME)
    state.saved.stops.add(GENESIS.hash)
    assert elections.halted(OUTCOME)
    assert not elections.halted(SET)


def test_who_has_forgotten_where_it_signed_branches_votes_on_no_outcome_of_that_time() -> None:
    state, _, elections = opened()
    state.saved.past.stopped = -1
    assert elections.halted(OUTCOME)
    assert not elections.halted(Instance("outcome", 1, GENESIS.hash))
    assert not elections.halted(SET)


# -- what is said again


def test_an_own_commitment_is_sent_again_until_the_set_is_decided() -> None:
    state, place, _ = opened((ME, OTHER))
    assert messages(taking_part.repeat(state, place, 1.0)) == [Commit(place.commits[ME])]
    place.decide(tuple(place.commits.values()), None, 1.0)
    assert messages(taking_part.repeat(state, place, 1.1)) == []


def test_late_results_are_announced_by_whoever_holds_them() -> None:
    state, place, _ = decided(held=False)
    others = replace(RESULT, reducer=OTHER)
    place.slices[0].results[others] = 8
    late = state.deadlines.data.deadline_s() + 0.1
    assert messages(taking_part.repeat(state, place, late)) == []
    state.held[others.root] = 0
    assert messages(taking_part.repeat(state, place, 0.1)) == []
    assert messages(taking_part.repeat(state, place, late)) == [
        ResultReady(0, GENESIS.hash, 0, others, 8)
    ]
    assert messages(taking_part.repeat(state, place, 1.4 * late)) == []
    assert messages(taking_part.repeat(state, place, 1.6 * late)) != []


def test_of_many_holders_a_few_tell_of_a_late_result_first() -> None:
    state, place, _ = decided(held=False)
    others = replace(RESULT, reducer=OTHER)
    place.slices[0].results[others] = 8
    state.held[others.root] = 0
    waits_s = state.deadlines.data_s
    place.drawn = Drawn((*map(null_peer_id, range(100, 107)), ME), ())
    assert messages(taking_part.repeat(state, place, 1.1 * waits_s)) != []
    place.repeat_at, place.drawn = 0.0, Drawn((*map(null_peer_id, range(100, 108)), ME), ())
    assert messages(taking_part.repeat(state, place, 1.1 * waits_s)) == []
    assert messages(taking_part.repeat(state, place, 2.1 * waits_s)) != []


def test_a_trainer_that_is_behind_is_asked_for_what_it_has() -> None:
    state, place, _ = opened((OTHER, THIRD))
    assert taking_part.hurry(state, place, 0.0) == []
    wanted = taking_part.hurry(state, place, state.deadlines.hurry_s + 0.1)
    assert wanted == [WantHandover(KEY, place.fragment, len(place.slices), urgent=True)]
    place.commits[ME] = commitment(ME, 0, GENESIS.hash)
    assert taking_part.hurry(state, place, state.deadlines.hurry_s + 0.1) == []


def protocol() -> RoundProtocol:
    restored = Restored(Chain(genesis(3), open_rounds=2))
    made = RoundProtocol(NullSigner(ME), settings_of(), restored, now=0.0)
    made.tick(0.1)
    return made


def test_what_could_not_be_transferred_is_tried_again() -> None:
    subject = protocol()
    piece = subject.state.rounds[KEY].slices[0]
    piece.sent_to.add(OTHER)
    subject.scatter_failed(KEY, 0, OTHER)
    assert OTHER not in piece.sent_to
    assert subject.state.fetch(RESULT.root, (OTHER,), 1.0) != []
    assert subject.state.fetch(RESULT.root, (OTHER,), 1.1) == []
    subject.fetch_failed(RESULT.root)
    assert subject.state.fetch(RESULT.root, (OTHER,), 1.2) != []


def test_a_commitment_that_comes_after_its_round_is_timed() -> None:
    subject = protocol()
    deadlines = subject.state.deadlines
    before = deadlines.commits.deadline_s()
    for number in (10, 11):
        deadlines.half_committed(RoundKey(number, GENESIS.hash), 0.0)
        for peer in (OTHER, THIRD):
            subject.receive(peer, Commit(commitment(peer, number, GENESIS.hash)), 1e4)
    assert deadlines.commits.deadline_s() > before


# -- which path is followed


def test_a_branch_of_few_takes_no_quorum_along_that_stands_at_the_head() -> None:
    for near, wanted in (((OTHER, THIRD), False), ((), True)):
        assert bool(aimed_at_a_branch_of_few(near, moved=0.0, now=9.0)) == wanted


def test_who_has_just_come_to_its_head_follows_no_branch_of_few_from_it() -> None:
    assert not aimed_at_a_branch_of_few((), moved=9.0 - REACH_S + 0.1, now=9.0)
    assert aimed_at_a_branch_of_few((), moved=9.0 - REACH_S, now=9.0)


def test_who_hears_a_quorum_of_others_lets_them_tell_what_they_know_for_a_while() -> None:
    for near, now, wanted in (((OTHER,), 9.0, False), ((), 9.0, True), ((OTHER,), 99.0, True)):
        ahead = name("a record of theirs")
        assert bool(aimed_at_a_branch_of_few(near, moved=0.0, now=now, head=ahead)) == wanted


def aimed_at_a_branch_of_few(
    near: tuple[PeerId, ...], *, moved: float, now: float, head: Digest = GENESIS.hash
) -> Sequence[Digest]:
    state = state_of()
    state.pulse.moved = moved
    branch, proof = branch_after(GENESIS, PEERS[2:3])
    for peer in near:
        state.branches.hello(peer, head, now - 0.1)
    state.chain.add(branch, proof)
    aim(state, [GENESIS.hash, branch.hash], now)
    return state.target
