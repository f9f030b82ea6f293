"""What the agreement machine does with each input in each of its states, found out by driving it."""

from __future__ import annotations

from runnel.types import Digest, PeerId
from runnel.verification.agreement import NIL, Action, Agreement, Proposal, Step
from tests.support.agreements import (
    INSTANCE,
    Host,
    X,
    Y,
    decisions,
    electorate,
    machine,
    vote,
    votes_in,
)

MEMBERS = 4  # three votes are a quorum
LOCKED = "propose, locked on X"
STATES = (
    "propose",
    LOCKED,
    "prevoted X",
    "prevoted nil",
    "precommitted X",
    "precommitted nil",
)
INPUTS = (
    "nothing",
    "the deadline",
    "a tenth of a second, the proposer being overdue",
    "own turn, with value X",
    "own turn, with nothing to propose",
    "X is proposed",
    "X is proposed, not acceptable",
    "X is proposed, too late",
    "Y is proposed",
    "Y is proposed, with a quorum of prevotes since the lock",
    "X is proposed, by one whose turn it is not",
    "prevotes: a quorum for X",
    "prevotes: a quorum for X, which is not held here",
    "prevotes: a quorum for nil",
    "prevotes: one for X, one for nil, one to come",
    "prevotes: one for X, one for nil, one to come, and the deadline",
    "prevotes: X, nil and Y, so that no value can have a quorum",
    "precommits: a quorum for X",
    "precommits: a quorum for X, which is not held here",
    "precommits: a quorum for nil",
    "precommits: one for X, one for nil, one to come",
    "precommits: one for X, one for nil, one to come, and the deadline",
    "precommits: X, nil and Y, so that no value can have a quorum",
    "a vote of a later attempt",
    "a vote of a later attempt, and the deadline",
    "votes of a later attempt by more than may lie",
    "this peer has signed a branch, and the deadline",
)
_SPLIT = (X, NIL, Y)
_OPEN = (X, NIL)
_LATE = 50.0


def in_state(state: str, *, own_turn: bool = False) -> tuple[Agreement, list[PeerId], PeerId]:
    """A machine brought to `state`; the other members, and whose turn it is to propose.

    The machine is in its second attempt where it is locked on X, and in the first otherwise.
    """
    attempt = attempt_of(state)
    turns = [electorate(MEMBERS).proposer(attempt + turn) for turn in range(MEMBERS)]
    me = turns[0 if own_turn else -1]
    subject, others = machine(me, MEMBERS), [p for p in turns if p != me]
    idle = Host(value=None)
    if state == LOCKED:
        _lock(subject, others, idle, ended=not own_turn)
    elif state in {"prevoted X", "precommitted X"}:
        subject.on_proposal(Proposal(INSTANCE, 0, X, turns[0]), 0.9)
        subject.advance(idle, 0.9)
    elif state != "propose":
        subject.advance(idle, 1.5)
    if state.startswith("precommitted"):
        for voter in others[:2]:
            subject.on_vote(vote(voter, X if state.endswith("X") else NIL), 1.5)
        subject.advance(idle, 1.5)
    return subject, others, turns[0]


def attempt_of(state: str) -> int:
    """Which attempt the machine is in."""
    return 1 if state == LOCKED else 0


def _lock(subject: Agreement, others: list[PeerId], idle: Host, *, ended: bool) -> None:
    """Locks X in the first attempt, which then ends with nothing (or is about to)."""
    subject.advance(idle, 1.5)
    for voter in others:
        subject.on_vote(vote(voter, X), 1.5)
    subject.advance(idle, 1.5)
    for voter in others:
        subject.on_vote(vote(voter, NIL, step=Step.PRECOMMIT), 0.0)
    if ended:
        subject.advance(idle, 0.0)


def give(subject: Agreement, given: str, others: list[PeerId], proposer: PeerId) -> list[Action]:
    """Hands one input to the machine and lets it go as far as it can."""
    soon = 0.9 if subject.step is Step.PROPOSE else 1.6
    now = _LATE if "deadline" in given or "too late" in given else soon
    host = Host(
        value=X if given == "own turn, with value X" else None,
        accepting="not acceptable" not in given,
        holding="not held" not in given,
        stopped="signed a branch" in given,
        silent=frozenset({proposer}) if "overdue" in given else frozenset(),
    )
    attempt = subject.attempt
    if "is proposed" in given:
        value = Y if given.startswith("Y") else X
        proof = tuple(vote(p, value) for p in others) if "since the lock" in given else ()
        who = others[1] if "whose turn it is not" in given else proposer
        subject.on_proposal(Proposal(INSTANCE, attempt, value, who, 0 if proof else -1, proof), now)
    if "votes: " in given or "commits: " in given:
        step = Step.PREVOTE if given.startswith("prevotes") else Step.PRECOMMIT
        values: tuple[Digest, ...] = (X,) * 3
        values = (NIL,) * 3 if "a quorum for nil" in given else values
        values = _OPEN if "one to come" in given else _SPLIT if "no value" in given else values
        for voter, value in zip(others, values, strict=False):
            subject.on_vote(vote(voter, value, attempt=attempt, step=step), now)
    if "of a later attempt" in given:
        for voter in others[: 2 if "more than may lie" in given else 1]:
            subject.on_vote(vote(voter, Y, attempt=attempt + 2), now)
    return subject.advance(host, now)


def outcome(state: str, given: str) -> str:
    """What the input makes of the state, in words; nothing if nothing happens."""
    subject, others, proposer = in_state(state, own_turn=given.startswith("own turn"))
    attempt, before = attempt_of(state), subject.lock
    actions = give(subject, given, others, proposer)
    names = {X: "X", Y: "Y", NIL: "nil"}
    told = ["propose X" for a in actions if isinstance(a, Proposal)]
    told += [f"{s.name.lower()} {names[v]}" for a, s, v in votes_in(actions) if a == attempt]
    if subject.lock != before:
        told.append(f"lock {names[subject.lock.value]}")
    if decisions(actions):
        told.append(f"decide {names[decisions(actions)[0]]}")
    elif subject.attempt > attempt:
        told.append("next attempt" if subject.attempt == attempt + 1 else "that attempt")
    return ", ".join(told)


def rows() -> list[tuple[str, ...]]:
    """The table: each input, and what it does in each state."""
    return [(given, *(outcome(state, given) for state in STATES)) for given in INPUTS]
