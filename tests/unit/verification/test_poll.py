"""What is kept of each member of a decision is bounded, whatever it says, and it sways nobody alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.types import Digest, PeerId
from runnel.verification.agreement import (
    MAX_HOP,
    NIL,
    Agreement,
    Decided,
    Proposal,
    Step,
    StoreVote,
    Vote,
)
from runnel.verification.poll import KEPT_PROPOSALS, KEPT_VOTES, Poll
from tests.support.agreements import (
    INSTANCE,
    STEP_S,
    Host,
    X,
    Y,
    deliver,
    electorate,
    follower,
    machine,
    vote,
)
from tests.support.members import PEERS

ATTEMPTS = st.integers(0, 6) | st.integers(0, 300) | st.integers(0, (1 << 62) - 1)
STEPS = st.sampled_from((Step.PREVOTE, Step.PRECOMMIT))
VALUES = st.sampled_from((X, Y, NIL))
FLOOD = st.lists(st.tuples(ATTEMPTS, STEPS, VALUES), max_size=200)


def kept(poll: Poll) -> tuple[int, int]:
    """Votes and proposals in the books."""
    return sum(len(b.votes) for b in poll._ballots.values()), len(poll._proposals)


@given(flood=FLOOD, current=st.integers(0, 6))
def test_of_each_member_so_many_votes_are_kept_and_those_of_the_current_attempt(
    flood: list[tuple[int, Step, Digest]], current: int
) -> None:
    poll, voter = Poll(electorate(3)), PEERS[0]
    first: dict[tuple[int, Step], Digest] = {}
    for attempt, step, value in flood:
        poll.cast(vote(voter, value, attempt=attempt, step=step), current)
        first.setdefault((attempt, step), value)
    assert kept(poll)[0] <= KEPT_VOTES
    newest = sorted(first)[-(KEPT_VOTES - 2) :]
    for place in [p for p in first if p[0] == current or p in newest]:
        said = poll.vote_of(voter, *place)
        assert said is not None
        assert said.value == first[place]
    counted = [b for b in poll._ballots.values() if sum(b.counts.values()) != len(b.votes)]
    assert counted == []


@given(attempts=st.lists(ATTEMPTS, max_size=60), current=st.integers(0, 6))
def test_of_each_member_so_many_proposals_are_kept(attempts: list[int], current: int) -> None:
    poll, turns = Poll(electorate(3)), electorate(3)
    for attempt in [*attempts, current]:
        poll.put(Proposal(INSTANCE, attempt, X, turns.proposer(attempt)), current)
    assert kept(poll)[1] <= 3 * KEPT_PROPOSALS
    assert poll.proposal(current) is not None


def test_older_votes_and_proposals_make_room_but_for_the_current_ones() -> None:
    poll, turns = Poll(electorate(3)), electorate(3)
    for attempt in range(100):
        poll.cast(vote(PEERS[0], X, attempt=attempt), 3)
        poll.put(Proposal(INSTANCE, attempt, X, turns.proposer(attempt)), 3)
    assert kept(poll) == (KEPT_VOTES, 3 * KEPT_PROPOSALS)
    assert poll.vote_of(PEERS[0], 3, Step.PREVOTE)
    assert poll.proposal(3)
    assert not poll.vote_of(PEERS[0], 4, Step.PREVOTE)


def test_who_is_far_ahead_alone_takes_nobody_along() -> None:
    subject, _, others = follower(4)
    for attempt in (5, 1 << 40, (1 << 62) - 1):
        assert subject.on_vote(vote(others[0], X, attempt=attempt), 0.1)
    subject.advance(Host(value=None), 0.1)
    assert subject.attempt == 0


def test_where_more_are_than_may_lie_one_goes_at_once_and_not_further_than_a_hop() -> None:
    subject, _, others = follower(4)
    for other in others[:2]:
        subject.on_vote(vote(other, X, attempt=5), 0.1)
    assert subject.attempt == 5
    for other in others[:2]:
        subject.on_vote(vote(other, X, attempt=1 << 40), 0.2)
    assert subject.attempt == 5 + MAX_HOP


def test_whoever_is_left_alone_in_an_attempt_goes_after_the_only_one_that_is_ahead() -> None:
    subject, _, others = follower(4)
    subject.advance(Host(value=None), 1.5 * STEP_S)  # votes for nothing, and nobody with it
    subject.on_vote(vote(others[0], X, attempt=3), 1.6 * STEP_S)
    assert subject.attempt == 0
    subject.advance(Host(value=None), 3.0 * STEP_S)
    assert subject.attempt == 3


def test_a_quorum_in_one_attempt_is_not_left_by_anybody() -> None:
    subject, _, others = follower(4)
    subject.advance(Host(value=None), 1.5 * STEP_S)
    for other in others[1:]:
        subject.on_vote(vote(other, X), 1.6 * STEP_S)
    subject.on_vote(vote(others[0], X, attempt=30), 1.6 * STEP_S)
    subject.advance(Host(value=None), 9.0 * STEP_S)
    assert subject.attempt == 0


class Rushed:
    """Honest members and one that says anything about any attempt, before every message of theirs."""

    def __init__(self, members: int, flood: list[tuple[int, Step, Digest]]) -> None:
        self.liar = PEERS[members - 1]
        self.peers = {p: machine(p, members) for p in PEERS[: members - 1]}
        self.flood, self.turns = flood, electorate(members)
        self.decided: dict[PeerId, Digest] = {}

    def tick(self, now: float, place: int) -> None:
        for me, peer in self.peers.items():
            if self.flood and me not in self.decided:
                self._lie(peer, now, place + len(me))
            for action in [*peer.advance(Host(), now), *peer.repeats()]:
                if isinstance(action, Decided):
                    self.decided[me] = action.value
                elif not isinstance(action, StoreVote):
                    for other in self.peers.values():
                        deliver(other, action, now)

    def _lie(self, peer: Agreement, now: float, place: int) -> None:
        attempt, step, value = self.flood[place % len(self.flood)]
        ahead = peer.attempt + attempt
        deliver(peer, vote(self.liar, value, attempt=ahead, step=step), now)
        if self.turns.proposer(ahead) == self.liar:
            deliver(peer, Proposal(INSTANCE, ahead, Y, self.liar), now)


@settings(max_examples=60, deadline=None)
@given(members=st.sampled_from((3, 4, 5)), flood=FLOOD)
def test_whatever_one_member_says_of_its_attempts_the_others_decide(
    members: int, flood: list[tuple[int, Step, Digest]]
) -> None:
    run = Rushed(members, flood)
    for tick in range(400):
        run.tick(tick * STEP_S / 4, tick)
        if len(run.decided) == len(run.peers):
            break
    assert set(run.decided) == set(run.peers)
    assert len(set(run.decided.values())) == 1
    for peer in run.peers.values():
        votes, proposals = kept(peer._poll)
        assert votes <= members * KEPT_VOTES
        assert proposals <= members * KEPT_PROPOSALS


def test_repeats_hold_what_ends_the_attempt_before() -> None:
    subject, _, others = follower(3)
    subject.advance(Host(value=None), 1.5)
    for other in others:
        subject.on_vote(vote(other, NIL), 1.5)
        subject.on_vote(vote(other, NIL, step=Step.PRECOMMIT), 1.5)
    subject.advance(Host(value=None), 1.5)
    subject.advance(Host(value=None), 9.0)  # votes in the second attempt
    assert (0, Step.PRECOMMIT) in {
        (v.attempt, v.step) for v in subject.repeats() if isinstance(v, Vote)
    }
