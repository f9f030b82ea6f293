"""The agreement machine never forgets and never takes back: restarts, locks, proofs, random runs."""

from __future__ import annotations

from random import Random

import pytest

from runnel.types import (
    Digest,
    PeerId,
)
from runnel.verification.agreement import (
    NIL,
    Agreement,
    Decided,
    Instance,
    Lock,
    Proposal,
    Step,
    StoreProposal,
    StoreVote,
    Vote,
    check_certificate,
)
from tests.support.agreements import (
    INSTANCE,
    Host,
    X,
    Y,
    deliver,
    electorate,
    follower,
    machine,
    vote,
    votes_in,
)
from tests.support.members import (
    PEERS,
    name,
    signed_vote,
    verify,
)

# -- restarts


def test_a_vote_is_stored_before_it_is_sent() -> None:
    actions = machine(PEERS[0], 1).advance(Host(), 0.0)
    for place, action in enumerate(actions):
        if isinstance(action, Vote):
            stored = actions[place - 1]
            assert isinstance(stored, StoreVote)
            assert stored.vote == action


def test_a_restart_resumes_without_equivocation() -> None:
    subject, proposer, others = follower()
    subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)
    stored = [a for a in subject.advance(Host(), 0.0) if isinstance(a, StoreVote)]
    again, _, _ = follower()
    again.restore([s.vote for s in stored], None)
    assert again.step is Step.PREVOTE
    again.on_proposal(Proposal(INSTANCE, 0, Y, proposer), 0.1)
    assert votes_in(again.advance(Host(), 0.2)) == []
    assert again.repeats() == [stored[0].vote]
    assert [v.value for v in again.repeats() if isinstance(v, Vote)] == [X]
    for other in others:
        again.on_vote(vote(other, X), 0.3)
    assert votes_in(again.advance(Host(), 0.3)) == [(0, Step.PRECOMMIT, X)]


def test_a_locked_value_is_proposed_again_with_its_proof_after_a_restart() -> None:
    me = electorate(3).proposer(1)
    others = [p for p in PEERS[:3] if p != me]
    before = machine(me, 3)
    for other in others:
        before.on_vote(vote(other, X), 0.0)
    before.advance(
        Host(), 1.5
    )  # a nil prevote, as no proposal came, then a lock on what has a quorum
    assert before.lock.value == X
    after = machine(me, 3)
    mine = [vote(me, NIL), vote(me, X, step=Step.PRECOMMIT)]
    after.restore(mine, before.lock)
    for other in others:
        after.on_vote(vote(other, NIL, step=Step.PRECOMMIT), 2.0)
    actions = after.advance(Host(value=Y), 2.0)
    proposal = next(a for a in actions if isinstance(a, Proposal))
    assert (proposal.value, proposal.attempt, proposal.lock_attempt) == (X, 1, 0)
    assert {v.voter for v in proposal.proof} == set(others)


def test_a_restart_proposes_again_what_it_proposed() -> None:
    me = electorate(3).proposer(0)
    actions = machine(me, 3).advance(Host(), 0.0)
    stored = [a for a in actions if isinstance(a, StoreProposal)]
    sent = [a for a in actions if isinstance(a, Proposal)]
    assert [s.proposal for s in stored] == sent
    assert actions.index(stored[0]) < actions.index(sent[0])
    again = machine(me, 3)
    again.restore([], None, sent)
    assert again.repeats() == sent
    assert not any(isinstance(a, Proposal) for a in again.advance(Host(value=Y), 0.1))


# -- locks and proofs


def locked_on_x() -> tuple[Agreement, list[PeerId]]:
    """One of three, locked on X at attempt 0 and now in an attempt with another proposer."""
    subject, proposer, others = follower()
    subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)
    subject.advance(Host(), 0.0)
    subject.on_vote(vote(others[0], X), 0.0)
    subject.advance(Host(), 0.0)
    assert subject.lock == Lock(0, X, subject.lock.proof)
    return subject, others


def other_attempt(subject: Agreement) -> tuple[int, PeerId]:
    """An attempt that somebody else proposes in, late enough to have a lock of attempt 1 before it."""
    order = electorate(3)
    attempt = next(a for a in (2, 3) if order.proposer(a) != me_of(subject))
    return attempt, order.proposer(attempt)


def me_of(subject: Agreement) -> PeerId:
    return next(v.voter for v in subject.repeats() if isinstance(v, Vote))


def prevoted(subject: Agreement, proposal: Proposal) -> list[tuple[int, Step, Digest]]:
    subject.on_proposal(proposal, 3.0)
    return votes_in(subject.advance(Host(), 3.0))


def test_a_locked_member_refuses_another_value_without_a_proof() -> None:
    subject, _ = locked_on_x()
    attempt, proposer = other_attempt(subject)
    assert prevoted(subject, Proposal(INSTANCE, attempt, Y, proposer)) == []
    assert votes_in(subject.advance(Host(), 9.0)) == [(attempt, Step.PREVOTE, NIL)]


def test_a_locked_member_takes_its_own_value_again() -> None:
    subject, _ = locked_on_x()
    attempt, proposer = other_attempt(subject)
    given = Proposal(INSTANCE, attempt, X, proposer)
    assert prevoted(subject, given) == [(attempt, Step.PREVOTE, X)]


def test_a_newer_lock_with_a_quorum_of_prevotes_frees_a_locked_member() -> None:
    subject, others = locked_on_x()
    attempt, proposer = other_attempt(subject)
    proof = tuple(vote(p, Y, attempt=1) for p in others)
    given = Proposal(INSTANCE, attempt, Y, proposer, 1, proof)
    assert prevoted(subject, given) == [(attempt, Step.PREVOTE, Y)]


@pytest.mark.parametrize(
    "fault", ["too few", "other attempt", "other value", "precommits", "stranger"]
)
def test_a_proof_that_proves_nothing_frees_nobody(fault: str) -> None:
    subject, others = locked_on_x()
    attempt, proposer = other_attempt(subject)
    proofs = {
        "too few": [vote(others[0], Y, attempt=1)] * 2,
        "other attempt": [vote(p, Y, attempt=0) for p in others],
        "other value": [vote(p, X, attempt=1) for p in others],
        "precommits": [vote(p, Y, attempt=1, step=Step.PRECOMMIT) for p in others],
        "stranger": [vote(p, Y, attempt=1) for p in (others[0], PEERS[7])],
    }
    given = Proposal(INSTANCE, attempt, Y, proposer, 1, tuple(proofs[fault]))
    assert prevoted(subject, given) == []


def test_a_lock_cannot_be_of_the_attempt_it_is_proposed_in() -> None:
    subject, others = locked_on_x()
    attempt, proposer = other_attempt(subject)
    proof = tuple(vote(p, Y, attempt=attempt) for p in others)
    assert prevoted(subject, Proposal(INSTANCE, attempt, Y, proposer, attempt, proof)) == []


def test_a_quorum_of_prevotes_locks_and_does_not_decide() -> None:
    subject, proposer, others = follower()
    subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)
    subject.on_vote(vote(others[0], X), 0.0)
    actions = subject.advance(Host(), 0.0)
    assert votes_in(actions)[-1] == (0, Step.PRECOMMIT, X)
    assert not any(isinstance(action, Decided) for action in actions)
    assert not subject.decided


# -- certificates


def precommits(voters: tuple[PeerId, ...], value: Digest = X) -> list[Vote]:
    return [vote(p, value, attempt=1, step=Step.PRECOMMIT) for p in voters]


def holds(votes: list[Vote], *, attempt: int = 1) -> bool:
    decided = Decided(INSTANCE, X, attempt, tuple(votes))
    return check_certificate(votes, decided, electorate(3), verify)


def test_a_quorum_of_signed_precommits_is_a_certificate() -> None:
    assert holds(precommits(PEERS[:2]))
    assert holds([vote(p, X, attempt=1) for p in PEERS[:2]])  # what a branch carries on from


@pytest.mark.parametrize(
    "votes",
    [
        [],
        precommits(PEERS[:1]),
        precommits(PEERS[:1]) * 3,
        precommits((PEERS[0], PEERS[7])),
        precommits(PEERS[:2], Y),
        [*precommits(PEERS[:1]), vote(PEERS[1], X, attempt=1)],
        [*precommits(PEERS[:1]), Vote(INSTANCE, 1, Step.PRECOMMIT, X, PEERS[1], b"forged")],
        [
            signed_vote(Vote(Instance("set", 4, name("base")), 1, Step.PRECOMMIT, X, p))
            for p in PEERS[:2]
        ],
    ],
    ids=["none", "one", "one thrice", "stranger", "value", "mixed steps", "forged", "instance"],
)
def test_anything_less_is_no_certificate(votes: list[Vote]) -> None:
    assert not holds(votes)


def test_a_certificate_is_of_one_attempt() -> None:
    assert not holds(precommits(PEERS[:2]), attempt=0)


# -- measuring


def test_only_equal_votes_say_how_long_others_take() -> None:
    subject, proposer, others = follower()
    assert subject.waited_for(vote(others[0], X), 0.5) is None
    subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 1.0)
    subject.advance(Host(), 1.0)
    assert subject.waited_for(vote(others[0], X), 1.25) == 0.25
    assert subject.waited_for(vote(others[0], NIL), 1.25) is None
    assert subject.waited_for(vote(others[0], Y), 1.25) is None
    assert subject.waited_for(vote(others[0], X, attempt=1), 1.25) is None


# -- random runs: losses, delays, restarts, every member proposing its own value


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(12))
def test_random_runs_decide_one_value_and_never_equivocate(members: int, seed: int) -> None:
    run = RandomRun(Random(1000 * members + seed), members)
    for tick in range(400):
        run.tick(tick * 0.25, quiet=tick > 120)
    assert set(run.decided) == set(PEERS[:members])
    assert len(set(run.decided.values())) == 1


class RandomRun:
    """Members that lose messages and restart from what they stored."""

    def __init__(self, rng: Random, members: int) -> None:
        self.rng, self.members = rng, members
        self.peers = {p: machine(p, members) for p in PEERS[:members]}
        self.stored: dict[PeerId, list[StoreVote]] = {p: [] for p in self.peers}
        self.decided: dict[PeerId, Digest] = {}
        self.cast: dict[tuple[PeerId, int, Step], Digest] = {}

    def tick(self, now: float, *, quiet: bool) -> None:
        for me in self.peers:
            if not quiet and self.rng.random() < 0.03:
                self._restart(me, now)
            self._act(me, now, 0.05 if quiet else 0.5)

    def _restart(self, me: PeerId, now: float) -> None:
        self.peers[me] = machine(me, self.members, now)
        locks = [s.lock for s in self.stored[me] if s.lock]
        self.peers[me].restore([s.vote for s in self.stored[me]], locks[-1] if locks else None)

    def _act(self, me: PeerId, now: float, loss: float) -> None:
        host = Host(value=name(f"value of {me.hex()}"))
        actions = self.peers[me].advance(host, now)
        for action in [*actions, *self.peers[me].repeats()]:
            if isinstance(action, StoreVote):
                self.stored[me].append(action)
                key = (me, action.vote.attempt, action.vote.step)
                assert self.cast.setdefault(key, action.vote.value) == action.vote.value
            elif isinstance(action, Decided):
                assert self.decided.setdefault(me, action.value) == action.value
                assert check_certificate(
                    action.certificate, action, electorate(self.members), verify
                )
            else:
                for other, peer in self.peers.items():
                    if other != me and self.rng.random() >= loss:
                        deliver(peer, action, now)
