"""The agreement machine: all states with all inputs, quorums, restarts, locks, proofs, and random runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest

from runnel.dht.identity import NullSigner
from runnel.types import Digest, PeerId
from runnel.verification.agreement import (
    NIL,
    SILENT_STEP_S,
    Action,
    Agreement,
    Decided,
    Electorate,
    Instance,
    Lock,
    Proposal,
    Step,
    StoreVote,
    Vote,
    check_certificate,
    majority,
)
from tests.support.members import PEERS, RUN, name, signed_vote, verify
from tests.support.members import vote as vote_of

INSTANCE = Instance("set", 3, name("base"))
X, Y = name("x"), name("y")
STEP_S = 1.0


@dataclass
class Host:
    """Answers as it is told."""

    value: Digest | None = X
    holding: bool = True
    accepting: bool = True
    stopped: bool = False
    silent: frozenset[PeerId] = frozenset()
    asked: list[int] = field(default_factory=list)

    def propose(self, instance: Instance, attempt: int, now: float) -> Digest | None:
        self.asked.append(attempt)
        return self.value

    def acceptable(self, proposal: Proposal, now: float) -> bool:
        return self.accepting

    def holds(self, instance: Instance, value: Digest) -> bool:
        return self.holding

    def is_silent(self, peer: PeerId, now: float) -> bool:
        return peer in self.silent

    def halted(self, instance: Instance) -> bool:
        return self.stopped


def electorate(members: int) -> Electorate:
    return Electorate.of(INSTANCE, PEERS[:members], majority)


def machine(me: PeerId, members: int, now: float = 0.0) -> Agreement:
    return Agreement(INSTANCE, electorate(members), NullSigner(me), RUN, now=now, step_s=STEP_S)


def follower(members: int = 3) -> tuple[Agreement, PeerId, list[PeerId]]:
    """A machine whose peer does not propose first; the proposer, and all the others."""
    proposer = electorate(members).proposer(0)
    others = [p for p in PEERS[:members] if p != proposer]
    return machine(others[0], members), proposer, [proposer, *others[1:]]


def vote(voter: PeerId, value: Digest, *, attempt: int = 0, step: Step = Step.PREVOTE) -> Vote:
    return vote_of(INSTANCE, voter, value, attempt=attempt, step=step)


def votes_in(actions: list[Action]) -> list[tuple[int, Step, Digest]]:
    return [(a.attempt, a.step, a.value) for a in actions if isinstance(a, Vote)]


def decisions(actions: list[Action]) -> list[Digest]:
    return [a.value for a in actions if isinstance(a, Decided)]


# -- quorums and the good case


@pytest.mark.parametrize(("members", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (64, 33)])
def test_a_quorum_is_more_than_half(members: int, quorum: int) -> None:
    assert majority(members) == quorum


def test_one_member_decides_alone_and_at_once() -> None:
    alone = machine(PEERS[0], 1)
    actions = alone.advance(Host(), 0.0)
    assert votes_in(actions) == [(0, Step.PREVOTE, X), (0, Step.PRECOMMIT, X)]
    assert decisions(actions) == [X]


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_exactly_a_quorum_of_live_members_decides(members: int) -> None:
    quorum = majority(members)
    order = [electorate(members).proposer(a) for a in range(members)]
    assert run_together(members, alive=order[:quorum]) == {X}
    if quorum > 1:
        assert run_together(members, alive=order[: quorum - 1]) == set()


def run_together(members: int, alive: list[PeerId]) -> set[Digest]:
    """Delivers everything among the living for a while; what they decided."""
    peers = {p: machine(p, members) for p in alive}
    decided: set[Digest] = set()
    pending: list[Action] = []
    for tick in range(60):
        for peer in peers.values():
            for item in pending:
                deliver(peer, item, tick / 2)
        pending = []
        for peer in peers.values():
            actions = peer.advance(Host(), tick / 2) + peer.repeats()
            pending += [a for a in actions if isinstance(a, Vote | Proposal)]
            decided |= set(decisions(actions))
    return decided


def deliver(peer: Agreement, item: Action, now: float) -> None:
    if isinstance(item, Vote):
        peer.on_vote(item, now)
    elif isinstance(item, Proposal):
        peer.on_proposal(item, now)


def test_proposers_take_turns() -> None:
    three = electorate(3)
    assert sorted(three.proposer(a) for a in range(3)) == sorted(PEERS[:3])
    assert three.proposer(0) == three.proposer(3)


# -- all states with all inputs

STATES = ("waiting", "prevoted X", "prevoted nil", "precommitted X", "precommitted nil")
INPUTS = (
    "nothing",
    "time",
    "proposal",
    "late proposal",
    "prevotes X",
    "prevotes nil",
    "split prevotes",
    "precommits X",
    "precommits nil",
    "split precommits",
    "later vote",
)

# What each input makes of each state, in votes of the same attempt, "decide", "next" attempt or nothing.
EXPECTED: dict[tuple[str, str], str] = {
    ("waiting", "time"): "prevote nil",
    ("waiting", "proposal"): "prevote X",
    ("waiting", "precommits X"): "decide",
    ("waiting", "later vote"): "next",
    ("prevoted X", "prevotes X"): "precommit X",
    ("prevoted X", "prevotes nil"): "precommit nil",
    ("prevoted X", "precommits X"): "decide",
    ("prevoted X", "later vote"): "next",
    ("prevoted nil", "prevotes X"): "precommit X",
    ("prevoted nil", "prevotes nil"): "precommit nil",
    ("prevoted nil", "precommits X"): "decide",
    ("prevoted nil", "later vote"): "next",
    ("precommitted X", "precommits X"): "decide",
    ("precommitted X", "precommits nil"): "next",
    ("precommitted X", "later vote"): "next",
    ("precommitted nil", "precommits X"): "decide",
    ("precommitted nil", "precommits nil"): "next",
    ("precommitted nil", "later vote"): "next",
}


def in_state(state: str) -> tuple[Agreement, list[PeerId], PeerId]:
    """One of four members, which needs three votes, brought to `state` at time 0."""
    subject, proposer, others = follower(4)
    host = Host()
    if state in {"prevoted X", "precommitted X"}:
        subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 1.5)
        subject.advance(host, 0.9)
    if state in {"prevoted nil", "precommitted nil"}:
        subject.advance(host, 1.5)
    if state.startswith("precommitted"):
        value = X if state.endswith("X") else NIL
        for voter in others[:2]:
            subject.on_vote(vote(voter, value), 1.5)
        subject.advance(host, 1.5)
    return subject, others, proposer


def apply(subject: Agreement, given: str, others: list[PeerId], proposer: PeerId) -> list[Action]:
    now = (
        5.0 if given in {"time", "late proposal"} else 0.9 if subject.step is Step.PROPOSE else 1.6
    )
    step = Step.PRECOMMIT if "precommits" in given else Step.PREVOTE
    values = {"X": [X, X, X], "nil": [NIL, NIL, NIL], "split": [X, NIL, Y]}
    chosen = next((v for key, v in values.items() if key in given.split()), [])
    if "proposal" in given:
        subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), now)
    if given == "later vote":
        subject.on_vote(vote(others[0], Y, attempt=2), now)
    for voter, value in zip(others, chosen, strict=False):
        subject.on_vote(vote(voter, value, step=step), now)
    return subject.advance(Host(value=None), now)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("state", STATES)
def test_every_input_in_every_state(state: str, given: str) -> None:
    subject, others, proposer = in_state(state)
    before = subject.attempt
    actions = apply(subject, given, others, proposer)
    expected = EXPECTED.get((state, given), "")
    if given == "late proposal" and state == "waiting":
        expected = "prevote X"
    names = {X: "X", NIL: "nil", Y: "Y"}
    cast = [f"{s.name.lower()} {names[v]}" for a, s, v in votes_in(actions) if a == before]
    outcome = "decide" if decisions(actions) else "next" if subject.attempt > before else ""
    assert (expected in {*cast, outcome}) or (not expected and not cast and not outcome)


@pytest.mark.parametrize("state", ["prevoted X", "prevoted nil"])
def test_split_prevotes_wait_for_the_deadline_and_then_give_a_nil_precommit(state: str) -> None:
    subject, others, proposer = in_state(state)
    assert votes_in(apply(subject, "split prevotes", others, proposer)) == []
    assert votes_in(subject.advance(Host(), 5.0)) == [(0, Step.PRECOMMIT, NIL)]


def test_split_precommits_wait_for_the_deadline_and_then_end_the_attempt() -> None:
    subject, others, proposer = in_state("precommitted nil")
    apply(subject, "split precommits", others, proposer)
    assert subject.attempt == 0
    subject.advance(Host(value=None), 5.0)
    assert subject.attempt == 1


# -- what is asked of the host


def test_a_value_that_is_not_held_is_neither_locked_nor_decided() -> None:
    subject, proposer, others = follower()
    subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)
    subject.advance(Host(), 0.0)
    for other in others:
        subject.on_vote(vote(other, X), 0.0)
        subject.on_vote(vote(other, X, step=Step.PRECOMMIT), 0.0)
    assert subject.advance(Host(holding=False), 0.0) == []
    assert decisions(subject.advance(Host(), 0.1)) == [X]


def test_an_unacceptable_proposal_gets_a_nil_vote_once_it_is_late() -> None:
    subject, proposer, _ = follower()
    subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)
    assert subject.advance(Host(accepting=False), 0.5) == []
    assert votes_in(subject.advance(Host(accepting=False), 1.5)) == [(0, Step.PREVOTE, NIL)]


def test_who_signed_a_branch_votes_no_more() -> None:
    subject, proposer, _ = follower()
    subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)
    assert subject.advance(Host(stopped=True), 5.0) == []


def test_the_clock_of_the_first_attempt_waits_while_there_is_nothing_to_propose() -> None:
    subject, _, _ = follower()
    subject.hold(10.0)
    assert subject.advance(Host(), 10.5) == []
    assert votes_in(subject.advance(Host(), 11.5)) == [(0, Step.PREVOTE, NIL)]
    subject.hold(20.0)  # too late: it has voted
    assert not subject.idle


def test_a_proposer_that_fell_silent_is_waited_for_only_briefly() -> None:
    subject, proposer, _ = follower()
    host = Host(silent=frozenset({proposer}))
    assert votes_in(subject.advance(host, SILENT_STEP_S)) == []
    assert votes_in(subject.advance(host, SILENT_STEP_S + 0.01)) == [(0, Step.PREVOTE, NIL)]


def test_steps_grow_longer_with_the_attempts_but_not_for_ever() -> None:
    def patience(attempt: int) -> float:
        subject, _, others = follower()
        subject.on_vote(vote(others[0], NIL, attempt=attempt, step=Step.PRECOMMIT), 0.0)
        host = Host(value=None)
        return next(t / 4 for t in range(1000) if votes_in(subject.advance(host, t / 4)))

    assert patience(0) < patience(4) < patience(40) == patience(1_000_000) < 20 * STEP_S


# -- strangers and doubles


def test_votes_and_proposals_of_strangers_do_not_count() -> None:
    subject, proposer, others = follower()
    assert not subject.on_proposal(Proposal(INSTANCE, 0, X, others[1]), 0.0)
    assert not subject.on_vote(vote(PEERS[7], X, attempt=5), 0.0)
    assert subject.attempt == 0
    assert subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)


def test_the_first_vote_and_the_first_proposal_count() -> None:
    subject, proposer, others = follower()
    assert subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), 0.0)
    assert not subject.on_proposal(Proposal(INSTANCE, 0, Y, proposer), 0.0)
    assert votes_in(subject.advance(Host(), 0.0)) == [(0, Step.PREVOTE, X)]
    assert subject.on_vote(vote(others[0], Y), 0.0)
    assert not subject.on_vote(vote(others[0], X), 0.0)
    assert subject.advance(Host(), 0.0) == []


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
