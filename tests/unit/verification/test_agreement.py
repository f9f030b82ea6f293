"""The agreement machine: quorums, all states with all inputs, and what it asks of its host."""

from __future__ import annotations

import pytest

from runnel.types import (
    Digest,
    PeerId,
)
from runnel.verification.agreement import (
    NIL,
    SILENT_STEP_S,
    Action,
    Agreement,
    Proposal,
    Step,
    Vote,
    majority,
)
from tests.support.agreement_table import in_state
from tests.support.agreements import (
    INSTANCE,
    STEP_S,
    Host,
    X,
    Y,
    decisions,
    deliver,
    electorate,
    follower,
    machine,
    vote,
    votes_in,
)
from tests.support.members import (
    PEERS,
)

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


def test_proposers_take_turns() -> None:
    three = electorate(3)
    assert sorted(three.proposer(a) for a in range(3)) == sorted(PEERS[:3])
    assert three.proposer(0) == three.proposer(3)


# -- all states with all inputs

STATES = ("propose", "prevoted X", "prevoted nil", "precommitted X", "precommitted nil")
INPUTS = (
    "nothing",
    "time",
    "proposal",
    "late proposal",
    "prevotes X",
    "prevotes nil",
    "open prevotes",
    "split prevotes",
    "precommits X",
    "precommits nil",
    "open precommits",
    "split precommits",
    "later votes",
    "later vote, alone",
)

# What each input makes of each state, in votes of the same attempt, "decide", "next" attempt or nothing.
EXPECTED: dict[tuple[str, str], str] = {
    ("propose", "time"): "prevote nil",
    ("propose", "proposal"): "prevote X",
    ("propose", "precommits X"): "decide",
    ("propose", "later votes"): "next",
    ("prevoted X", "prevotes X"): "precommit X",
    ("prevoted X", "prevotes nil"): "precommit nil",
    ("prevoted X", "split prevotes"): "precommit nil",
    ("prevoted X", "precommits X"): "decide",
    ("prevoted X", "later votes"): "next",
    ("prevoted nil", "prevotes X"): "precommit X",
    ("prevoted nil", "prevotes nil"): "precommit nil",
    ("prevoted nil", "split prevotes"): "precommit nil",
    ("prevoted nil", "precommits X"): "decide",
    ("prevoted nil", "later votes"): "next",
    ("precommitted X", "precommits X"): "decide",
    ("precommitted X", "precommits nil"): "next",
    ("precommitted X", "split precommits"): "next",
    ("precommitted X", "later votes"): "next",
    ("precommitted nil", "precommits X"): "decide",
    ("precommitted nil", "precommits nil"): "next",
    ("precommitted nil", "split precommits"): "next",
    ("precommitted nil", "later votes"): "next",
}


def apply(subject: Agreement, given: str, others: list[PeerId], proposer: PeerId) -> list[Action]:
    now = (
        5.0 if given in {"time", "late proposal"} else 0.9 if subject.step is Step.PROPOSE else 1.6
    )
    step = Step.PRECOMMIT if "precommits" in given else Step.PREVOTE
    values = {"X": [X, X, X], "nil": [NIL, NIL, NIL], "open": [X, NIL]}
    values["split"] = [X, NIL, Y]
    chosen = next((v for key, v in values.items() if key in given.split()), [])
    if "proposal" in given:
        subject.on_proposal(Proposal(INSTANCE, 0, X, proposer), now)
    if given == "later votes":
        for other in others[:2]:
            subject.on_vote(vote(other, Y, attempt=2), now)
    if given == "later vote, alone":
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
    if given == "late proposal" and state == "propose":
        expected = "prevote X"
    names = {X: "X", NIL: "nil", Y: "Y"}
    cast = [f"{s.name.lower()} {names[v]}" for a, s, v in votes_in(actions) if a == before]
    outcome = "decide" if decisions(actions) else "next" if subject.attempt > before else ""
    assert (expected in {*cast, outcome}) or (not expected and not cast and not outcome)


@pytest.mark.parametrize("state", ["prevoted X", "prevoted nil"])
def test_prevotes_wait_for_those_to_come_until_the_deadline_and_then_give_a_nil_precommit(
    state: str,
) -> None:
    subject, others, proposer = in_state(state)
    assert votes_in(apply(subject, "open prevotes", others, proposer)) == []
    assert votes_in(subject.advance(Host(), 5.0)) == [(0, Step.PRECOMMIT, NIL)]


def test_precommits_wait_for_those_to_come_until_the_deadline_and_then_end_the_attempt() -> None:
    subject, others, proposer = in_state("precommitted nil")
    apply(subject, "open precommits", others, proposer)
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


def test_a_proposer_that_missed_its_turn_is_told_of_and_one_that_was_skipped_is_not() -> None:
    subject, proposer, _ = follower()
    skipping, waiting = Host(silent=frozenset({proposer})), Host()
    subject.advance(skipping, SILENT_STEP_S + 0.01)
    assert skipping.missed == []
    subject, proposer, _ = follower()
    subject.advance(waiting, STEP_S + 0.01)
    assert waiting.missed == [(proposer, 0.0)]


def test_steps_grow_longer_with_the_attempts_but_not_for_ever() -> None:
    def patience(attempt: int) -> float:
        subject, _, others = follower()
        for other in others:
            subject.restore([vote(other, NIL, attempt=attempt)], None)
        subject.step = Step.PROPOSE
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
